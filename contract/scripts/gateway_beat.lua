#!lua flags=allow-oom
-- A gateway lives; its inbox is kept, or made anew (then rows were lost, and every stream must be filled). Each inbox has
-- an epoch, which the gateway proposes and the script keeps: whoever lost a reply is told with the next one all the same.
-- What the gateway says of itself stands beside the counter, and its id in the index of gateways.
-- KEYS gateway inbox gateways
-- ARGV gateway epoch field value ...
-- -> the epoch of the inbox
reclaim(KEYS[1], 'hash')
reclaim(KEYS[2], 'stream')
reclaim(KEYS[3], 'zset')
local epoch = redis.call('HGET', KEYS[1], 'inbox')
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('XADD', KEYS[2], '*', 'hello', '1')
  epoch = ARGV[2]
end
redis.call('PEXPIRE', KEYS[2], 30000)
redis.call('HINCRBY', KEYS[1], 'beat', 1)
epoch = epoch or ARGV[2]  -- the hash was lost alone
redis.call('HSET', KEYS[1], 'inbox', epoch, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], 60000)
local now = now_ms()
redis.call('ZADD', KEYS[3], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - 60000)
redis.call('PEXPIRE', KEYS[3], 60000)
return epoch
