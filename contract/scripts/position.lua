#!lua flags=no-writes
-- How many undelivered entries stand before this generation's. -1 once it is delivered or gone.
-- KEYS gen
local m = redis.call('HMGET', KEYS[1], 'state', 'entry', 'q')
if m[1] ~= 'queued' then return -1 end
local groups = redis.pcall('XINFO', 'GROUPS', m[3])
if groups.err then return -1 end
for _, group in ipairs(groups) do
  local last
  for k = 1, #group, 2 do
    if group[k] == 'last-delivered-id' then last = group[k + 1] end
  end
  if last then
    local before = redis.call('XRANGE', m[3], '(' .. last, m[2], 'COUNT', 10000)
    return #before - 1
  end
end
return -1
