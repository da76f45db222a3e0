#!lua flags=allow-oom
-- Every entry that is pending to this worker. One that is gone from its stream is acked.
-- KEYS q...
-- ARGV worker
-- -> {q, entry, id} ...
local out = {}
for _, q in ipairs(KEYS) do
  local pending = redis.pcall('XPENDING', q, GROUP, '-', '+', 1000, ARGV[1])
  for _, p in ipairs(pending.err and {} or pending) do
    local found = redis.call('XRANGE', q, p[1], p[1])
    if #found == 0 then redis.call('XACK', q, GROUP, p[1])
    else out[#out + 1] = {q, p[1], found[1][2][2]} end
  end
end
return out
