#!lua flags=allow-oom
-- What a worker serves, for a while; and the jobs streams of its model.
-- KEYS models model bundle q...
-- ARGV name digest bundle ttl_ms
local now = now_ms()
redis.call('SET', KEYS[3], ARGV[3], 'PX', ARGV[4])
reclaim(KEYS[2], 'hash')
redis.call('HSET', KEYS[2], 'digest', ARGV[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
reclaim(KEYS[1], 'zset')
redis.call('ZADD', KEYS[1], now + ARGV[4], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
redis.call('PEXPIRE', KEYS[1], ARGV[4])
for k = 4, #KEYS do open_queue(KEYS[k]) end
return 1
