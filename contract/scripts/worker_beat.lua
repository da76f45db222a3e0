#!lua flags=allow-oom
-- A worker lives, and says what it is doing.
-- KEYS worker pool
-- ARGV worker field value ...
-- -> now
local now = now_ms()
reclaim(KEYS[1], 'hash')
reclaim(KEYS[2], 'zset')
redis.call('HINCRBY', KEYS[1], 'beat', 1)
if #ARGV > 1 then redis.call('HSET', KEYS[1], unpack(ARGV, 2)) end
redis.call('PEXPIRE', KEYS[1], 60000)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now - 60000)
redis.call('PEXPIRE', KEYS[2], 60000)
return now
