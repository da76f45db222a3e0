#!lua flags=allow-oom
-- Close a generation that is past its deadline and grace, owned or not; any gateway may call it.
-- KEYS gen
-- ARGV tag id grace_ms
local m = redis.call('HMGET', KEYS[1], 'state', 'deadline')
if not m[1] or m[1] == 'finished' or now_ms() <= num(m[2]) + num(ARGV[3]) then return 0 end
local box = {}
close(ARGV[1], ARGV[2], 'DEADLINE', '', '', box)
send(ARGV[1], box)
return 1
