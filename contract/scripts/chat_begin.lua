#!lua
-- Begin the next turn: what the user says and the generation that will answer are kept before anything is queued.
-- A turn that is open must be ended first; a request_id that was used stands for its turn. Idempotent.
-- KEYS chat
-- ARGV epoch turn generation request_id user dropped
-- -> {BEGUN|SAME|OPEN|MOVED, turn} | {FENCED} | {GONE}
local epoch, turn, generation, request, user = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local m = redis.call('HMGET', KEYS[1], 'epoch', 'next', 'open', 'ttl', 'q:' .. request, 'g:' .. turn)
if not m[1] then return {'GONE'} end
if m[1] ~= epoch then return {'FENCED'} end
if m[3] == turn and m[6] == generation and redis.call('HGET', KEYS[1], 'u:' .. turn) == user
  and redis.call('HGET', KEYS[1], 'r:' .. turn) == request then return {'BEGUN', turn} end
if request ~= '' and m[5] then return {'SAME', m[5]} end
if m[3] ~= '' then return {'OPEN', m[3]} end
if m[2] ~= turn then return {'MOVED', m[2]} end
redis.call('HSET', KEYS[1], 'u:' .. turn, user, 'g:' .. turn, generation, 'r:' .. turn, request, 'open', turn,
  'next', num(turn) + 1, 'shown', '', 'dropped', ARGV[6],
  'begun_ms', now_ms())
if request ~= '' then redis.call('HSET', KEYS[1], 'q:' .. request, turn) end
redis.call('PEXPIRE', KEYS[1], m[4])
return {'BEGUN', turn}
