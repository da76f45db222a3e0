#!lua flags=allow-oom
-- All of a conversation, for who holds its secret. With an epoch it is that connection's from here on. Idempotent.
-- KEYS chat
-- ARGV caller secret epoch|''
-- -> {field, value, ...} | nil
local m = redis.call('HMGET', KEYS[1], 'caller', 'secret')
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] then return false end
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'epoch', ARGV[3]) end
return redis.call('HGETALL', KEYS[1])
