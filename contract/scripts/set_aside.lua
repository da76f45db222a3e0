#!lua flags=allow-oom
-- End a generation whose job or log its owner cannot read. A retry with the same lease answers the same.
-- KEYS gen log
-- ARGV tag id lease why
-- -> 1 | 0, the lease is another's
local tag, id, lease = ARGV[1], ARGV[2], ARGV[3]
local m = fields_of(KEYS[1], 'state', 'lease', 'lastlease', 'attempt')
if m[1] == 'finished' then return m[3] == lease and 1 or 0 end
if m[2] ~= lease then return 0 end
local box = {}
redis.call('HSET', KEYS[1], 'lastlease', lease)
set_aside(tag, id, num(m[4]), ARGV[4], box)
send(tag, box)
return 1
