#!lua flags=allow-oom
-- Move free entries to this worker, classes in order; take follows for each. Of those that the next crash would
-- convict, at most one: it has to run alone.
-- KEYS q...
-- ARGV tag worker max may_run_alone(1|0) cap
-- -> {q, entry, id, runs_alone(1|0)} ...
local tag, worker, max, cap = ARGV[1], ARGV[2], num(ARGV[3]), num(ARGV[5])
local out, may_run_alone = {}, ARGV[4] == '1'

-- -> whether to adopt it, whether it runs alone
local function judge(crashes)
  if crashes ~= cap - 1 then return true, false end  -- at the cap take sets it aside
  if not may_run_alone then return false, false end
  may_run_alone = false
  return true, true
end

for _, q in ipairs(KEYS) do
  local free = redis.pcall('XPENDING', q, GROUP, '-', '+', 64, FREE)
  for _, p in ipairs(free.err and {} or free) do
    if #out >= max then return out end
    local found = redis.call('XRANGE', q, p[1], p[1])
    if #found == 0 then redis.call('XACK', q, GROUP, p[1])
    else
      local id = found[1][2][2]
      local wanted, runs_alone = judge(num(redis.pcall('HGET', tag .. ':gen:' .. id, 'crashes')))
      if wanted then
        redis.call('XCLAIM', q, GROUP, worker, 0, p[1], 'JUSTID')
        out[#out + 1] = {q, p[1], id, runs_alone and 1 or 0}
      end
    end
  end
end
return out
