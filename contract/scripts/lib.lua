-- What several scripts share. Prepended to each; `close` is the only way a generation ends.

local GROUP, FREE = 'w', '_free'
local MAX_ID = '18446744073709551615-18446744073709551615'
local INBOX_BYTES = 33554432   -- an inbox holds roughly as much; its reader fills from the log what was trimmed
local INBOX_MIN_ENTRIES = 256
local KEEP_MS = 600000         -- a finished generation can be read for at least this long
local ORPHAN_GRACE_MS = 15000  -- a gateway that lost its inbox may come back for as long

local function now_ms()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function num(x) return tonumber(x) or 0 end

-- Any key may have been overwritten with something of another type, which harms nobody but whose it is. A record of
-- another type has no fields: what `take` finds so it sets aside. -> the fields as HMGET gives them, the error if any
local function fields_of(gen, ...)
  local m = redis.pcall('HMGET', gen, ...)
  if not m.err then return m end
  if not string.find(m.err, 'WRONGTYPE', 1, true) then error(m.err) end
  return {}, m.err
end

-- A key that many share is made anew: what stood in it is gone already.
local function reclaim(key, kind)
  local found = redis.call('TYPE', key)['ok']
  if found ~= kind and found ~= 'none' then redis.call('DEL', key) end
end

local function caller_key(tag, caller) return tag .. ':caller:' .. redis.sha1hex(caller or '') end

-- Rows for the inboxes of this call: gateway -> {kind .. id, value, ...}. A call puts one row of a kind for a generation,
-- so no field stands twice in an entry (clients read an entry's fields into a map).
local function put(box, readers, kind, id, value)
  for gw in string.gmatch(readers or '', '[^,]+') do
    local rows = box[gw]
    if not rows then rows = {}; box[gw] = rows end
    rows[#rows + 1] = kind .. id
    rows[#rows + 1] = value
  end
end

-- One entry for each gateway that still has an inbox; a reader that misses rows fills from the log. -> the set of
-- gateways without one: those are dead, or draining, or have just lost it.
local function send(tag, box)
  local gone = {}
  for gw, rows in pairs(box) do
    local size = 0
    for _, part in ipairs(rows) do size = size + #part end
    local max_entries = math.max(INBOX_MIN_ENTRIES, math.floor(INBOX_BYTES / size))
    for first = 1, #rows, 1000 do
      local added = redis.pcall('XADD', tag .. ':in:' .. gw, 'NOMKSTREAM', 'MAXLEN', '~', max_entries, '*',
        unpack(rows, first, math.min(first + 999, #rows)))
      if type(added) ~= 'string' then gone[gw] = true end
    end
  end
  return gone
end

-- Terminal entry, state, ack and delete together. An entry that was never delivered stays in its stream until a
-- worker reads and drops it: deleting it would blind the group's lag. What is missing in a damaged record counts as
-- nothing; a log that takes no end has one, or is none.
local function close(tag, id, reason, body, err, box)
  local gen, log = tag .. ':gen:' .. id, tag .. ':log:' .. id
  local m = redis.call('HMGET', gen, 'T', 'q', 'entry', 'readers', 'attempt', 'accepted_ms', 'taken_ms', 'first_ms',
    'last_ms', 'window', 'chain', 'caller')
  local times = string.format('%.0f %.0f %.0f %.0f %.0f', num(m[6]), num(m[7]), num(m[8]), num(m[9]), now_ms())
  local T, attempts, chain = m[1] or 0, m[5] or 0, m[11] or 0
  local function write_end()
    return redis.pcall('XADD', log, MAX_ID, 'e', reason, 'T', T, 'b', body, 'a', attempts, 'm', times, 'r', err)
  end
  if type(write_end()) == 'table' and redis.call('TYPE', log)['ok'] ~= 'stream' then
    redis.call('DEL', log)
    write_end()
  end
  redis.call('HSET', gen, 'state', 'finished', 'reason', reason, 'owner', '', 'lease', '')
  redis.pcall('ZREM', caller_key(tag, m[12]), id)
  if m[2] and m[3] and redis.pcall('XACK', m[2], GROUP, m[3]) == 1 then redis.call('XDEL', m[2], m[3]) end
  local keep = math.max(num(m[10]), KEEP_MS)
  redis.call('PEXPIRE', gen, keep)
  redis.call('PEXPIRE', log, keep)
  put(box, m[4], 'E', id, T .. ' ' .. T .. ' ' .. chain .. '|'
    .. reason .. ' ' .. attempts .. ' ' .. times .. ' ' .. #err .. ' ' .. err .. body)
end

-- Put a generation on the list of dead letters, without its prompt.
local function list_dead(tag, id, attempts, ...)
  reclaim(tag .. ':dead', 'stream')
  redis.call('XADD', tag .. ':dead', 'MAXLEN', '~', 1000, '*', 'g', id, 'attempts', attempts, ...)
end

-- End a generation that nobody can go on with, and list it.
local function set_aside(tag, id, attempts, why, box)
  list_dead(tag, id, attempts, 'why', why)
  close(tag, id, 'FAILED', '', 'unreadable', box)
end

-- Whether a cancel has been wanted for longer than an owner that lives needs for it. `cancel` is since when, or ''; '1'
-- of an earlier version is long ago.
local function is_overdue(now, cancel, grace_ms)
  return (cancel or '') ~= '' and now > num(cancel) + num(grace_ms)
end

-- A cancel that nobody can act on closes; one that an owner can is flagged, and the owner is told. One that its owner has
-- not acted on for grace_ms, where that is given, closes too: the owner is dead, frozen, or fenced by it.
local function cancel(tag, id, grace_ms)
  local gen = tag .. ':gen:' .. id
  local m = fields_of(gen, 'state', 'owner', 'cancel')
  if not m[1] or m[1] == 'finished' then return end
  local now = now_ms()
  if m[2] == '' or (grace_ms and is_overdue(now, m[3], grace_ms)) then
    local box = {}
    close(tag, id, 'CANCELLED', '', '', box)
    send(tag, box)
  elseif m[3] == '' then
    redis.call('HSET', gen, 'cancel', now)
    redis.call('PUBLISH', tag .. ':nudge:' .. m[2], id)
  end
end

-- Whether nobody has read for longer than a reader may be away. `unread_since` is set when the last reader left, or
-- when no reader's inbox was left: then the gateways may still come back, and get the grace.
local function is_abandoned(now, readers, unread_since, window)
  if not unread_since or unread_since == '' then return false end
  local away = num(window)
  if readers ~= '' then away = math.max(away, ORPHAN_GRACE_MS) end
  return now > num(unread_since) + away
end

-- The jobs stream and its group; nothing if they stand.
local function open_queue(q)
  reclaim(q, 'stream')
  local made = redis.pcall('XGROUP', 'CREATE', q, GROUP, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then error(made.err) end
end

local function names_of(list)
  local names = {}
  for name in string.gmatch(list or '', '[^,]+') do names[#names + 1] = name end
  return names
end

local function without(names, gone)
  local left = {}
  for _, name in ipairs(names) do
    if name ~= gone then left[#left + 1] = name end
  end
  return left
end

-- What XINFO says of the workers' group, by name; nil if there is no such stream or group.
local function group_of(q)
  local groups = redis.pcall('XINFO', 'GROUPS', q)
  if groups.err then return nil end
  for _, flat in ipairs(groups) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if group['name'] == GROUP then return group end
  end
  return nil
end

-- One field of a stream's entry, as a number; 0 without it.
local function number_in(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return num(entry[2][i + 1]) end
  end
  return 0
end

-- At most four gateways get rows. Further ones, `pollers`, read the log; each takes the place of a reader that leaves,
-- or that has no inbox any more when the poller attaches again. -> 1 if this gateway gets rows
local function add_reader(tag, gen, readers, pollers, gw)
  local have = names_of(readers)
  for _, name in ipairs(have) do
    if name == gw then
      redis.call('HSET', gen, 'unread_since', '')
      return 1
    end
  end
  if #have >= 4 then
    local living = {}
    for _, name in ipairs(have) do
      if redis.call('EXISTS', tag .. ':in:' .. name) == 1 then living[#living + 1] = name end
    end
    have = living
  end
  local polling = without(names_of(pollers), gw)
  local has_place = #have < 4
  if has_place then have[#have + 1] = gw else polling[#polling + 1] = gw end
  redis.call('HSET', gen, 'readers', table.concat(have, ','), 'unread_since', '')
  if #polling > 0 or (pollers or '') ~= '' then redis.call('HSET', gen, 'pollers', table.concat(polling, ',')) end
  return has_place and 1 or 0
end
