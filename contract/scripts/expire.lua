#!lua flags=allow-oom
-- Close a generation that is past its deadline, or whose cancel has been wanted, for longer than the grace, owned or not;
-- any gateway may call it. So an end needs no worker.
-- KEYS gen
-- ARGV tag id grace_ms
local m = fields_of(KEYS[1], 'state', 'deadline', 'cancel')
if not m[1] or m[1] == 'finished' then return 0 end
local now, reason = now_ms(), nil
if is_overdue(now, m[3], ARGV[3]) then reason = 'CANCELLED'
elseif now > num(m[2]) + num(ARGV[3]) then reason = 'DEADLINE' end
if not reason then return 0 end
local box = {}
close(ARGV[1], ARGV[2], reason, '', '', box)
send(ARGV[1], box)
return 1
