#!lua flags=allow-oom
-- End a generation of this caller. Idempotent; the first terminal entry wins. Said again, it does not wait for an owner
-- that has had its grace.
-- KEYS gen
-- ARGV tag id caller grace_ms
-- -> state reason | nil | UNREADABLE
local m, spoiled = fields_of(KEYS[1], 'state', 'caller')
if spoiled or (m[1] and not m[2]) then return 'UNREADABLE' end
if not m[1] or m[2] ~= ARGV[3] then return false end
cancel(ARGV[1], ARGV[2], ARGV[4])
return redis.call('HMGET', KEYS[1], 'state', 'reason')
