#!lua flags=allow-oom
-- A gateway has no stream of this generation any more; one that read the log for want of a place gets its place. When
-- it was the last reader the resume window begins; a window of 0 is a cancel. Idempotent.
-- KEYS gen
-- ARGV tag id gateway
local m = fields_of(KEYS[1], 'state', 'readers', 'window', 'unread_since', 'pollers')
if not m[1] or m[1] == 'finished' then return 0 end
local left, polling = without(names_of(m[2]), ARGV[3]), without(names_of(m[5]), ARGV[3])
while #left < 4 and #polling > 0 do left[#left + 1] = table.remove(polling, 1) end
redis.call('HSET', KEYS[1], 'readers', table.concat(left, ','))
if (m[5] or '') ~= '' then redis.call('HSET', KEYS[1], 'pollers', table.concat(polling, ',')) end
if #left > 0 then return 0 end
if m[4] == '' then redis.call('HSET', KEYS[1], 'unread_since', now_ms()) end
if num(m[3]) == 0 then cancel(ARGV[1], ARGV[2]) end
return 1
