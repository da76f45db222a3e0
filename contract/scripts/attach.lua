#!lua flags=allow-oom
-- Register a gateway as a reader before it reads the log, and tell what stands. With gateway '' only tell.
-- KEYS gen
-- ARGV caller gateway
-- -> state caller T chain attempt reason job accepted window | nil
local m = redis.call('HMGET', KEYS[1], 'state', 'caller', 'T', 'chain', 'attempt', 'reason', 'job', 'accepted_ms',
  'window', 'readers')
if not m[1] or m[2] ~= ARGV[1] then return false end
if m[1] ~= 'finished' then add_reader(KEYS[1], m[10], ARGV[2]) end
m[10] = nil
return m
