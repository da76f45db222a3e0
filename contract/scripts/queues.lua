#!lua flags=no-writes
-- How far jobs streams are worked off. A stream that is not there is an empty one.
-- KEYS q...
-- -> by q {undelivered, free, held, delivered}: free were held by a worker and wait again; delivered counts for ever
local out = {}
for k, q in ipairs(KEYS) do
  local pending = redis.pcall('XPENDING', q, GROUP)
  if pending.err then out[k] = {0, 0, 0, 0}
  else
    local free, delivered = 0, 0
    for _, consumer in ipairs(pending[4] or {}) do
      if consumer[1] == FREE then free = num(consumer[2]) end
    end
    for _, group in ipairs(redis.call('XINFO', 'GROUPS', q)) do
      for i = 1, #group, 2 do
        if group[i] == 'entries-read' then delivered = num(group[i + 1]) end
      end
    end
    out[k] = {redis.call('XLEN', q) - pending[1], free, pending[1] - free, delivered}
  end
end
return out
