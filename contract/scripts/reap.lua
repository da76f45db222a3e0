#!lua flags=allow-oom
-- All that a dead worker held becomes free; it is fenced from here on. Refused if it has beaten since it was seen.
-- A running generation is charged a crash; a queued one was not to blame, nor was one that stood still while another
-- had the worker to itself.
-- KEYS worker pool q...
-- ARGV tag worker beat_seen wake_channel cap
-- -> ALIVE | {moved, left}
if (fields_of(KEYS[1], 'beat')[1] or '') ~= ARGV[3] then return 'ALIVE' end
local tag, worker, moved, left = ARGV[1], ARGV[2], 0, 0
local alone, is_charged = unpack((fields_of(KEYS[1], 'alone', 'charged')))
if alone and not is_charged then
  local m = fields_of(tag .. ':gen:' .. alone, 'owner', 'crashes')
  if m[1] ~= worker or num(m[2]) < num(ARGV[5]) - 1 then alone = false end  -- it has proved itself, or has gone
  if alone then redis.call('HSET', KEYS[1], 'charged', 1) end  -- a second call for the rest charges nobody
end
for k = 3, #KEYS do
  local q = KEYS[k]
  local pending = redis.pcall('XPENDING', q, GROUP, '-', '+', 256, worker)
  if not pending.err then
    for _, p in ipairs(pending) do
      local found = redis.call('XRANGE', q, p[1], p[1])
      if #found == 0 then redis.call('XACK', q, GROUP, p[1])
      else
        local id = found[1][2][2]
        local gen = tag .. ':gen:' .. id
        if fields_of(gen, 'owner')[1] == worker then
          redis.call('HSET', gen, 'owner', '', 'lease', '', 'state', 'free')
          if not alone or alone == id then
            redis.call('HINCRBY', gen, 'crashes', 1)
            redis.call('HINCRBY', gen, 'deaths', 1)
          end
        end
        redis.call('XCLAIM', q, GROUP, FREE, 0, p[1], 'JUSTID')
        moved = moved + 1
      end
    end
    if #pending < 256 then redis.call('XGROUP', 'DELCONSUMER', q, GROUP, worker) else left = 1 end
  end
end
if left == 0 then
  redis.call('DEL', KEYS[1])
  redis.pcall('ZREM', KEYS[2], worker)
end
if moved > 0 then redis.call('PUBLISH', ARGV[4], '') end
return {moved, left}
