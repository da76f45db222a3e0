#!lua flags=allow-oom
-- Hand an entry back, uncharged: a drain (own lease), or a reconcile ('*': pending to us but not held). Idempotent.
-- KEYS gen q
-- ARGV worker lease|* entry wake_channel
local own = redis.pcall('XPENDING', KEYS[2], GROUP, ARGV[3], ARGV[3], 1)
if #own == 0 or own[1][2] ~= ARGV[1] then return 0 end
local m, spoiled = fields_of(KEYS[1], 'state', 'lease', 'entry')
if not spoiled then  -- else there is nothing to change, and the next take sets it aside
  if not m[1] or m[1] == 'finished' or m[3] ~= ARGV[3] then
    redis.call('XACK', KEYS[2], GROUP, ARGV[3])
    redis.call('XDEL', KEYS[2], ARGV[3])
    return 1
  end
  if ARGV[2] ~= '*' and m[2] ~= '' and m[2] ~= ARGV[2] then return 0 end
  redis.call('HSET', KEYS[1], 'owner', '', 'lease', '')
  if m[1] == 'running' then redis.call('HSET', KEYS[1], 'state', 'free') end
end
redis.call('XCLAIM', KEYS[2], GROUP, FREE, 0, ARGV[3], 'JUSTID')
redis.call('PUBLISH', ARGV[4], '')
return 1
