#!lua flags=allow-oom
-- What all generations of a worker add in one step: one row each, one result a row, no row fails another.
-- KEYS gen log, pairwise by row
-- ARGV tag, then by row: id lease t0 n chain0 chain1 body choice_ends end end_choices error
-- -> by row {OK|DONE|FENCED|BACK, T, cancel}
local tag, now = ARGV[1], now_ms()
local PROVEN_TOKENS = 4  -- an attempt that has logged as many does not crash for what it was given
local box, sent, out = {}, {}, {}

-- Tokens into the log, and a row to each reader. -> whether the log took them
local function append(gen, log, id, T, t0, n, chain0, chain1, body, ends, readers)
  local fields = {'f', t0, 'h', chain0, 'c', body}
  if ends ~= '' then fields[7] = 'x'; fields[8] = ends end
  local added = redis.pcall('XADD', log, T .. '-0', unpack(fields))
  if type(added) == 'table' then return false end
  if t0 == 0 then redis.call('HSET', gen, 'T', T, 'chain', chain1, 'last_ms', now, 'first_ms', now)
  else redis.call('HSET', gen, 'T', T, 'chain', chain1, 'last_ms', now) end
  if readers ~= '' then
    put(box, readers, 'T', id, t0 .. ' ' .. T .. ' ' .. chain0 .. '|' .. body)
    if ends ~= '' then put(box, readers, 'C', id, T .. ' ' .. T .. ' ' .. chain1 .. '|' .. ends) end
  end
  return true
end

local function write_row(r)
  local a = (r - 1) * 11 + 2
  local id, lease, t0, n, chain0, chain1, body, ends, reason, end_body, err = unpack(ARGV, a, a + 10)
  t0, n = tonumber(t0), tonumber(n)
  local gen, log = KEYS[2 * r - 1], KEYS[2 * r]
  local lease_now, T, chain, cancel, readers, state, lastlease, unread_since, window, crashes, base = unpack(
    redis.call('HMGET', gen, 'lease', 'T', 'chain', 'cancel', 'readers', 'state', 'lastlease', 'unread_since', 'window',
    'crashes', 'base'))
  T = num(T)
  if lease == '' then return {'FENCED', T, ''} end
  if state == 'finished' and lastlease == lease then return {'DONE', T, ''} end
  if lease_now ~= lease then return {'FENCED', T, ''} end
  if t0 > T or (t0 < T and T < t0 + n) then return {'BACK', T, cancel} end
  -- The same positions with other tokens, or an end short of the log's: this owner and the log have parted.
  if t0 == T and chain0 ~= chain then return {'FENCED', T, ''} end
  if n > 0 and t0 + n == T and chain1 ~= chain then return {'FENCED', T, ''} end
  if reason == 'DONE' and t0 + n < T then return {'FENCED', T, ''} end
  if t0 == T and n > 0 then
    if not append(gen, log, id, t0 + n, t0, n, chain0, chain1, body, ends, readers) then return {'FENCED', T, ''} end
    T = t0 + n
    if crashes ~= '0' and T >= num(base) + PROVEN_TOKENS then redis.call('HSET', gen, 'crashes', 0) end
    if readers ~= '' and reason == '' then sent[#sent + 1] = {gen, readers, unread_since} end
  end
  if reason ~= '' then
    redis.call('HSET', gen, 'lastlease', lease)
    close(tag, id, reason, end_body, err, box)
    return {'DONE', T, ''}
  end
  if cancel == '' and is_abandoned(now, readers, unread_since, window) then
    redis.call('HSET', gen, 'cancel', now)
    cancel = now
  end
  return {'OK', T, cancel}
end

for r = 1, #KEYS / 2 do
  local ok, reply = pcall(write_row, r)
  if not ok then
    redis.log(redis.LOG_WARNING, 'step: ' .. KEYS[2 * r - 1] .. ': ' .. (type(reply) == 'table' and reply.err or reply))
  end
  out[r] = ok and reply or {'FENCED', 0, ''}
end

-- A generation whose readers have all lost their inboxes is unread from now on; one whose reader is back is not.
local gone = send(tag, box)
for _, row in ipairs(sent) do
  local gen, readers, unread_since = row[1], row[2], row[3]
  if next(gone) or unread_since ~= '' then
    local is_read = false
    for gw in string.gmatch(readers, '[^,]+') do is_read = is_read or not gone[gw] end
    if is_read and unread_since ~= '' then redis.call('HSET', gen, 'unread_since', '')
    elseif not is_read and unread_since == '' then redis.call('HSET', gen, 'unread_since', now) end
  end
end
return out
