#!lua
-- A new conversation. Idempotent: a retry with the same secret finds its own.
-- KEYS chat
-- ARGV caller secret setup trace epoch ttl_ms
-- -> OK | TAKEN
local have = redis.call('HGET', KEYS[1], 'secret')
if have then return have == ARGV[2] and 'OK' or 'TAKEN' end
redis.call('HSET', KEYS[1], 'v', 1, 'caller', ARGV[1], 'secret', ARGV[2], 'setup', ARGV[3], 'trace', ARGV[4],
  'epoch', ARGV[5], 'ttl', ARGV[6], 'first', 0, 'next', 0, 'open', '', 'shown', '', 'dropped', 0, 'begun_ms', 0, 'stop', '',
  'bytes', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return 'OK'
