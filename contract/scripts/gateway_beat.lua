#!lua flags=allow-oom
-- A gateway lives; its inbox is kept, or made anew (then rows were lost, and every stream must be filled).
-- KEYS gateway inbox
-- -> 1 if the inbox was made
local made = 1 - redis.call('EXISTS', KEYS[2])
if made == 1 then redis.call('XADD', KEYS[2], '*', 'hello', '1') end
redis.call('PEXPIRE', KEYS[2], 30000)
redis.call('HINCRBY', KEYS[1], 'beat', 1)
redis.call('PEXPIRE', KEYS[1], 60000)
return made
