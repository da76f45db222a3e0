#!lua flags=allow-oom
-- A gateway lives; its inbox is kept, or made anew (then rows were lost, and every stream must be filled).
-- What it says of itself stands beside the counter, and its id in the index of gateways.
-- KEYS gateway inbox gateways
-- ARGV gateway field value ...
-- -> 1 if the inbox was made
local made = 1 - redis.call('EXISTS', KEYS[2])
if made == 1 then redis.call('XADD', KEYS[2], '*', 'hello', '1') end
redis.call('PEXPIRE', KEYS[2], 30000)
redis.call('HINCRBY', KEYS[1], 'beat', 1)
if #ARGV > 1 then redis.call('HSET', KEYS[1], unpack(ARGV, 2)) end
redis.call('PEXPIRE', KEYS[1], 60000)
local now = now_ms()
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 60000)
redis.call('PEXPIRE', KEYS[3], 60000)
return made
