#!lua flags=allow-oom
-- The conversation is over: nothing of it is kept. A turn that still runs is for the caller to cancel. Idempotent.
-- KEYS chat
-- ARGV caller secret
-- -> generation of the open turn, or ''
local m = redis.call('HMGET', KEYS[1], 'caller', 'secret', 'open')
if m[1] ~= ARGV[1] or m[2] ~= ARGV[2] then return '' end
local generation = m[3] ~= '' and redis.call('HGET', KEYS[1], 'g:' .. m[3]) or ''
redis.call('DEL', KEYS[1])
return generation
