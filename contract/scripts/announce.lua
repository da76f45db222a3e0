#!lua flags=allow-oom
-- What a worker serves, for a while; and the jobs streams of its model.
-- KEYS model bundle q...
-- ARGV digest bundle ttl_ms
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
redis.call('HSET', KEYS[1], 'digest', ARGV[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
for k = 3, #KEYS do open_queue(KEYS[k]) end
return 1
