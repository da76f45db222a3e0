#!lua flags=allow-oom
-- Take jobs off the list of those that were set aside.
-- KEYS dead
-- ARGV entry...
-- -> how many of them were on it
reclaim(KEYS[1], 'stream')
local num_gone = 0
for _, entry in ipairs(ARGV) do num_gone = num_gone + redis.call('XDEL', KEYS[1], entry) end
return num_gone
