#!lua
-- Create a generation and queue it, or attach to it if it stands. Idempotent: a retry attaches to its own first call.
-- Without a gateway nobody reads it yet, and the resume window begins at once. `place` is the number that the group's
-- deliveries will have reached when it is next: what stands before it is place - delivered.
-- KEYS gen q caller
-- ARGV tag id caller digest job gateway window_ms max_time_ms slack_ms tokens max_waiting max_tokens max_held
-- -> QUEUED position place now | ATTACHED state T accepted place gets_rows(1|0) | NOTFOUND | CONFLICT | UNREADABLE
--    | WAITING jobs | TOKENS tokens | HELD generations
local tag, id, caller, digest, job, gw = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local window, max_time, slack, tokens = num(ARGV[7]), num(ARGV[8]), num(ARGV[9]), num(ARGV[10])
local gen, q, held_by_caller = KEYS[1], KEYS[2], KEYS[3]
if redis.call('EXISTS', gen) == 1 then
  local m = fields_of(gen, 'caller', 'digest', 'state', 'T', 'readers', 'accepted_ms', 'pollers', 'place')
  if not m[1] then return {'UNREADABLE'} end
  if m[1] ~= caller then return {'NOTFOUND'} end
  if m[2] ~= digest then return {'CONFLICT'} end
  local gets_rows = 0
  if gw ~= '' and m[3] ~= 'finished' then gets_rows = add_reader(tag, gen, m[5], m[7], gw) end
  return {'ATTACHED', m[3], m[4], m[6], m[8] or 0, gets_rows}
end
local now = now_ms()
reclaim(held_by_caller, 'zset')
redis.call('ZREMRANGEBYSCORE', held_by_caller, '-inf', now)  -- records that expired without an end
local held = redis.call('ZCARD', held_by_caller)
if held >= num(ARGV[13]) then return {'HELD', held} end

local group = group_of(q)
if not group then
  open_queue(q)
  group = group_of(q)
end
local waiting = redis.call('XLEN', q) - group['pending']
if waiting >= num(ARGV[11]) then return {'WAITING', waiting} end
-- Each entry has its tokens `t`, and `c`, those of all entries up to it: the difference is what waits.
local first = redis.call('XRANGE', q, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)[1]
local last = redis.call('XREVRANGE', q, '+', '-', 'COUNT', 1)[1]
local total = last and number_in(last, 'c') or 0
local queued = first and total - number_in(first, 'c') + number_in(first, 't') or 0
if waiting > 0 and queued + tokens > num(ARGV[12]) then return {'TOKENS', queued} end

local entry = redis.call('XADD', q, '*', 'g', id, 't', tokens, 'c', total + tokens)
local place = num(group['entries-read']) + waiting
redis.call('HSET', gen, 'v', 1, 'state', 'queued', 'caller', caller, 'digest', digest, 'job', job, 'q', q,
  'entry', entry, 'T', 0, 'chain', 0, 'attempt', 0, 'crashes', 0, 'owner', '', 'lease', '', 'lastlease', '',
  'cancel', '', 'readers', gw, 'unread_since', gw == '' and now or '', 'window', window, 'reason', '', 'place', place,
  'accepted_ms', now, 'deadline', now + max_time, 'taken_ms', 0, 'first_ms', 0, 'last_ms', 0)
local keep = max_time + window + slack
redis.call('PEXPIRE', gen, keep)
redis.call('ZADD', held_by_caller, now + keep, id)
if redis.call('PTTL', held_by_caller) < keep then redis.call('PEXPIRE', held_by_caller, keep) end
return {'QUEUED', waiting, place, now}
