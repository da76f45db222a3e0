#!lua flags=allow-oom
-- What all generations of a worker add in one step: one row each, one result a row, no row fails another.
-- KEYS gen log, pairwise by row
-- ARGV tag, then by row: id lease t0 n chain0 chain1 body choice_ends end end_choices error
-- -> by row {OK|DONE|FENCED|BACK|BAD, T, cancel}
local tag, box, out = ARGV[1], {}, {}
local now = now_ms()
for r = 1, #KEYS / 2 do
  local a = (r - 1) * 11 + 1
  local id, lease, t0, n = ARGV[a + 1], ARGV[a + 2], tonumber(ARGV[a + 3]), tonumber(ARGV[a + 4])
  local chain0, chain1, body, ends = ARGV[a + 5], ARGV[a + 6], ARGV[a + 7], ARGV[a + 8]
  local reason, end_body, err = ARGV[a + 9], ARGV[a + 10], ARGV[a + 11]
  local gen, log = KEYS[2 * r - 1], KEYS[2 * r]
  local m = redis.call('HMGET', gen, 'lease', 'T', 'chain', 'cancel', 'readers', 'state', 'lastlease', 'unread_since',
    'window')
  local T = num(m[2])
  if not t0 or not n or t0 < 0 or n < 0 then out[r] = {'BAD', T, ''}
  elseif m[6] == 'finished' and m[7] == lease then out[r] = {'DONE', T, ''}
  elseif not m[1] or m[1] ~= lease then out[r] = {'FENCED', T, ''}
  elseif t0 > T or (t0 < T and T < t0 + n) then out[r] = {'BACK', T, m[4]}
  elseif t0 == T and chain0 ~= m[3] then out[r] = {'FENCED', T, ''}
  else
    local refused = false
    if t0 == T and n > 0 then
      local fields = {'f', t0, 'h', chain0, 'c', body}
      if ends ~= '' then fields[7] = 'x'; fields[8] = ends end
      local added = redis.pcall('XADD', log, (t0 + n) .. '-0', unpack(fields))
      if type(added) == 'table' and added.err then refused = true
      else
        T = t0 + n
        if t0 == 0 then redis.call('HSET', gen, 'T', T, 'chain', chain1, 'first_ms', now, 'last_ms', now)
        else redis.call('HSET', gen, 'T', T, 'chain', chain1, 'last_ms', now) end
        put(box, m[5], 'T', id, t0 .. ' ' .. T .. ' ' .. chain0 .. '|' .. body)
        if ends ~= '' then put(box, m[5], 'C', id, T .. ' ' .. T .. ' ' .. chain1 .. '|' .. ends) end
      end
    end
    if refused then out[r] = {'FENCED', T, ''}
    elseif reason ~= '' then
      redis.call('HSET', gen, 'lastlease', lease)
      close(tag, id, reason, end_body, err, box)
      out[r] = {'DONE', T, ''}
    else
      if m[4] == '' and m[5] == '' and m[8] ~= '' and now > num(m[8]) + num(m[9]) then
        redis.call('HSET', gen, 'cancel', '1')  -- the resume window is over and nobody came back
        m[4] = '1'
      end
      out[r] = {'OK', T, m[4]}
    end
  end
end
send(tag, box)
return out
