#!lua flags=allow-oom
-- Turn an entry that is pending to this worker into a lease. A retry with the same lease answers the same.
-- KEYS gen log q worker
-- ARGV tag id worker lease entry cap max_deaths
-- -> OK attempt T chain cancel accepted deadline now job | LOST | DROP [reason]
local tag, id, worker, lease, entry = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local gen, log, q = KEYS[1], KEYS[2], KEYS[3]

-- Of a generation whose record is something else by now its log alone is known, and nobody who reads it or has begun it.
local function replace_record()
  local last = redis.pcall('XREVRANGE', log, '+', '-', 'COUNT', 1)
  local T = last[1] and string.match(last[1][1], '^%d+') or 0
  if last[1] and last[1][1] == MAX_ID then T = number_in(last[1], 'T') end
  redis.call('DEL', gen)
  redis.call('HSET', gen, 'v', 1, 'state', 'free', 'q', q, 'entry', entry, 'T', T, 'chain', 0, 'attempt', 0)
end

local own = redis.pcall('XPENDING', q, GROUP, entry, entry, 1)
if #own == 0 or own[1][2] ~= worker then return {'LOST'} end
local m, spoiled = fields_of(gen, 'state', 'entry', 'lease', 'attempt', 'T', 'chain', 'cancel', 'accepted_ms',
  'deadline', 'job', 'crashes', 'readers', 'unread_since', 'window', 'taken_ms', 'deaths')
local box = {}
if spoiled then
  replace_record()
  set_aside(tag, id, 0, spoiled, box)
  return {'DROP', 'DAMAGED'}
end
if not m[1] or m[1] == 'finished' or m[2] ~= entry then
  redis.call('XACK', q, GROUP, entry)
  redis.call('XDEL', q, entry)
  return {'DROP'}
end
local now = now_ms()
if m[3] == lease then return {'OK', m[4], m[5], m[6], m[7], m[8], m[9], now, m[10]} end
if m[3] ~= '' then return {'LOST'} end
local reason = nil
if m[7] ~= '' then reason = 'CANCELLED'
elseif now > num(m[9]) then reason = 'DEADLINE'
elseif is_abandoned(now, m[12], m[13], m[14]) then reason = 'CANCELLED'
elseif num(m[11]) >= num(ARGV[6]) or num(m[16]) >= num(ARGV[7]) then
  reason = 'POISON'
  list_dead(tag, id, m[4])
end
if reason then
  close(tag, id, reason, '', '', box)
  send(tag, box)
  return {'DROP', reason}
end
local attempt = num(m[4]) + 1
local marked = redis.pcall('XADD', log, (m[5] or '') .. '-' .. attempt, 's', attempt, 'w', worker)
if type(marked) == 'table' then  -- its log is another's, or none
  set_aside(tag, id, num(m[4]), marked.err, box)
  send(tag, box)
  return {'DROP', 'DAMAGED'}
end
redis.call('HSET', gen, 'state', 'running', 'owner', worker, 'lease', lease, 'attempt', attempt)
if num(m[11]) > 0 then redis.call('HSET', gen, 'base', m[5]) end  -- what this attempt has to go beyond
if num(m[11]) >= num(ARGV[6]) - 1 then  -- the worker runs nothing else: a crash is charged to this one alone
  redis.call('HSET', KEYS[4], 'alone', id)
  redis.call('PEXPIRE', KEYS[4], 60000)
end
if num(m[15]) == 0 then redis.call('HSET', gen, 'taken_ms', now) end
redis.call('PEXPIRE', log, math.max(1, redis.call('PTTL', gen)))
put(box, m[12], 'S', id, m[5] .. ' ' .. m[5] .. ' ' .. (m[6] or 0) .. '|' .. attempt)
send(tag, box)
return {'OK', attempt, m[5], m[6], m[7], m[8], m[9], now, m[10]}
