#!lua flags=no-writes
-- How far jobs streams are worked off. A stream that is not there is an empty one.
-- KEYS q...
-- -> by q {undelivered, free, held, delivered}: free were held by a worker and wait again; delivered counts for ever
local out = {}
for k, q in ipairs(KEYS) do
  local group = group_of(q)
  if not group then out[k] = {0, 0, 0, 0}
  else
    local free, pending = 0, group['pending']
    for _, consumer in ipairs(redis.call('XPENDING', q, GROUP)[4] or {}) do
      if consumer[1] == FREE then free = num(consumer[2]) end
    end
    out[k] = {redis.call('XLEN', q) - pending, free, pending - free, num(group['entries-read'])}
  end
end
return out
