#!lua flags=allow-oom
-- The shape of the herd; who comes first writes it.
-- KEYS meta
-- ARGV v shards
-- -> v shards
redis.call('HSETNX', KEYS[1], 'v', ARGV[1])
redis.call('HSETNX', KEYS[1], 'shards', ARGV[2])
return redis.call('HMGET', KEYS[1], 'v', 'shards')
