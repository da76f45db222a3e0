#!lua flags=allow-oom
-- Move free entries to this worker; take follows for each. Of those that ended a worker before, at most one, and one
-- that may be poison only for a worker that holds nothing else.
-- KEYS q
-- ARGV tag worker max alone(1|0) cap
-- -> {entry, id} ...
local out, suspects = {}, 0
local free = redis.pcall('XPENDING', KEYS[1], GROUP, '-', '+', 64, FREE)
if free.err then return out end
for _, p in ipairs(free) do
  if #out >= num(ARGV[3]) then break end
  local found = redis.call('XRANGE', KEYS[1], p[1], p[1])
  if #found == 0 then redis.call('XACK', KEYS[1], GROUP, p[1])
  else
    local id = found[1][2][2]
    local crashes = num(redis.call('HGET', ARGV[1] .. ':gen:' .. id, 'crashes'))
    local wanted = true
    if crashes >= 1 and crashes < num(ARGV[5]) then
      wanted = suspects == 0 and (crashes < num(ARGV[5]) - 1 or (ARGV[4] == '1' and #out == 0))
      if wanted then suspects = suspects + 1 end
    end
    if wanted then
      redis.call('XCLAIM', KEYS[1], GROUP, ARGV[2], 0, p[1], 'JUSTID')
      out[#out + 1] = {p[1], id}
      if crashes == num(ARGV[5]) - 1 and crashes >= 1 then break end  -- it runs alone
    end
  end
end
return out
