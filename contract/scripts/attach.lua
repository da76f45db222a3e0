#!lua flags=allow-oom
-- Register a gateway as a reader before it reads the log, and tell what stands. With gateway '' only tell. Idempotent.
-- KEYS gen
-- ARGV tag caller gateway
-- -> state caller T chain attempt reason job accepted window place gets_rows(1|0) | nil | UNREADABLE
local m, spoiled = fields_of(KEYS[1], 'state', 'caller', 'T', 'chain', 'attempt', 'reason', 'job', 'accepted_ms',
  'window', 'place', 'readers', 'pollers')
if spoiled or (m[1] and not m[2]) then return 'UNREADABLE' end
if not m[1] or m[2] ~= ARGV[2] then return false end
local gets_rows = 0
if m[1] ~= 'finished' and ARGV[3] ~= '' then gets_rows = add_reader(ARGV[1], KEYS[1], m[11], m[12], ARGV[3]) end
m[11], m[12] = gets_rows, nil
return m
