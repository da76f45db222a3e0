#!lua flags=allow-oom
-- End the open turn: keep what was said, or with said '0' forget it (the turn failed). Whoever finds the turn's
-- generation at its end calls this; only the first call counts. The oldest turns go when the bounds are passed.
-- KEYS chat
-- ARGV turn said(1|0) text max_turns max_bytes
-- -> 1 ended by this call | 0 it was not open
local chat, turn = KEYS[1], ARGV[1]
local m = redis.call('HMGET', chat, 'open', 'first', 'next', 'bytes', 'ttl', 'u:' .. turn)
if m[1] ~= turn then return 0 end
local bytes = num(m[4])
if ARGV[2] == '1' then
  redis.call('HSET', chat, 'a:' .. turn, ARGV[3])
  bytes = bytes + #m[6] + #ARGV[3]
else
  local request = redis.call('HGET', chat, 'r:' .. turn) or ''
  redis.call('HDEL', chat, 'u:' .. turn, 'g:' .. turn, 'r:' .. turn, 'q:' .. request)  -- it may be tried again
end
local first, last = num(m[2]), num(m[3]) - 1
while first < last and (last - first + 1 > num(ARGV[4]) or bytes > num(ARGV[5])) do
  local old = redis.call('HMGET', chat, 'u:' .. first, 'a:' .. first, 'r:' .. first)
  if old[1] then bytes = bytes - #old[1] - #(old[2] or '') end
  redis.call('HDEL', chat, 'u:' .. first, 'a:' .. first, 'g:' .. first, 'r:' .. first, 'q:' .. (old[3] or ''))
  first = first + 1
end
redis.call('HSET', chat, 'open', '', 'shown', '', 'first', first, 'bytes', bytes)
redis.call('PEXPIRE', chat, m[5])
return 1
