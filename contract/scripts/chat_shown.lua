#!lua flags=allow-oom
-- The user interrupts the open turn, having seen so many of its tokens ('' is all of them). The first word counts.
-- KEYS chat
-- ARGV caller secret shown
-- -> generation of the open turn, '' if none is open | nil
local m = redis.call('HMGET', KEYS[1], 'caller', 'secret', 'open')
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] then return false end
if m[3] == '' then return '' end
if redis.call('HGET', KEYS[1], 'stop') ~= m[3] then redis.call('HSET', KEYS[1], 'shown', ARGV[3], 'stop', m[3]) end
return redis.call('HGET', KEYS[1], 'g:' .. m[3])
