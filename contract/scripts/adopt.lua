#!lua flags=allow-oom
-- Move free entries to this worker, classes in order; take follows for each. Of those that ended a worker before, at
-- most one, and one that may be poison only for a worker that holds nothing else: it gets nothing beside it.
-- KEYS q...
-- ARGV tag worker max alone(1|0) cap
-- -> {q, entry, id} ...
local tag, worker, max, cap = ARGV[1], ARGV[2], num(ARGV[3]), num(ARGV[5])
local out, suspects = {}, 0

-- -> whether to adopt it, whether it runs alone
local function judge(crashes)
  if crashes < 1 or crashes >= cap then return true, false end  -- at the cap take sets it aside
  if suspects > 0 then return false, false end
  local runs_alone = crashes == cap - 1
  if runs_alone and (ARGV[4] ~= '1' or #out > 0) then return false, false end
  suspects = suspects + 1
  return true, runs_alone
end

for _, q in ipairs(KEYS) do
  local free = redis.pcall('XPENDING', q, GROUP, '-', '+', 64, FREE)
  for _, p in ipairs(free.err and {} or free) do
    if #out >= max then return out end
    local found = redis.call('XRANGE', q, p[1], p[1])
    if #found == 0 then redis.call('XACK', q, GROUP, p[1])
    else
      local id = found[1][2][2]
      local wanted, runs_alone = judge(num(redis.call('HGET', tag .. ':gen:' .. id, 'crashes')))
      if wanted then
        redis.call('XCLAIM', q, GROUP, worker, 0, p[1], 'JUSTID')
        out[#out + 1] = {q, p[1], id}
      end
      if runs_alone then return out end
    end
  end
end
return out
