#!lua flags=allow-oom
-- A gateway has no stream of this generation any more. When it was the last reader the resume window begins; a window
-- of 0 is a cancel. Idempotent.
-- KEYS gen
-- ARGV tag id gateway
local m = redis.call('HMGET', KEYS[1], 'state', 'readers', 'window', 'unread_since')
if not m[1] or m[1] == 'finished' then return 0 end
local left = {}
for name in string.gmatch(m[2], '[^,]+') do
  if name ~= ARGV[3] then left[#left + 1] = name end
end
redis.call('HSET', KEYS[1], 'readers', table.concat(left, ','))
if #left > 0 then return 0 end
if m[4] == '' then redis.call('HSET', KEYS[1], 'unread_since', now_ms()) end
if num(m[3]) == 0 then cancel(ARGV[1], ARGV[2]) end
return 1
