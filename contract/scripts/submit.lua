#!lua
-- Create a generation and queue it, or attach to it if it stands. Idempotent: a retry attaches to its own first call.
-- Without a gateway nobody reads it yet, and the resume window begins at once.
-- KEYS gen q
-- ARGV tag id caller digest job gateway max_waiting window_ms max_time_ms slack_ms
-- -> QUEUED position now | ATTACHED state T accepted gets_rows(1|0) | NOTFOUND | CONFLICT | OVERLOADED waiting
local tag, id, caller, digest, job, gw = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local gen, q = KEYS[1], KEYS[2]
if redis.call('EXISTS', gen) == 1 then
  local m = redis.call('HMGET', gen, 'caller', 'digest', 'state', 'T', 'readers', 'accepted_ms', 'pollers')
  if m[1] ~= caller then return {'NOTFOUND'} end
  if m[2] ~= digest then return {'CONFLICT'} end
  local gets_rows = 0
  if gw ~= '' and m[3] ~= 'finished' then gets_rows = add_reader(tag, gen, m[5], m[7], gw) end
  return {'ATTACHED', m[3], m[4], m[6], gets_rows}
end
local summary = redis.pcall('XPENDING', q, GROUP)
if summary.err then
  open_queue(q)
  summary = {0}
end
local waiting = redis.call('XLEN', q) - summary[1]
if waiting >= num(ARGV[7]) then return {'OVERLOADED', waiting} end
local entry = redis.call('XADD', q, '*', 'g', id)
local now = now_ms()
redis.call('HSET', gen, 'v', 1, 'state', 'queued', 'caller', caller, 'digest', digest, 'job', job, 'q', q,
  'entry', entry, 'T', 0, 'chain', 0, 'attempt', 0, 'crashes', 0, 'owner', '', 'lease', '', 'lastlease', '',
  'cancel', '', 'readers', gw, 'unread_since', gw == '' and now or '', 'window', ARGV[8], 'reason', '',
  'accepted_ms', now, 'deadline', now + num(ARGV[9]), 'taken_ms', 0, 'first_ms', 0, 'last_ms', 0)
redis.call('PEXPIRE', gen, num(ARGV[9]) + num(ARGV[8]) + num(ARGV[10]))
return {'QUEUED', waiting, now}
