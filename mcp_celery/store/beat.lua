-- A worker's heartbeat, with the components whose jobs it takes.
--
-- KEYS[1]  sorted set: the workers, by the time until which their last heartbeat holds
-- KEYS[2]  hash: the worker's components, by fingerprint
-- KEYS[3]  sorted set: workers that may have messages which they have not read, by since when
-- KEYS[4]  hash: how many jobs each worker can run at a time
-- KEYS[5]  sorted set: the lines of callers, in the order in which they have their turns
-- ARGV[1]  the worker
-- ARGV[2]  how long this heartbeat holds, in ms
-- ARGV[3]  for how long it may have messages which it has not read, in ms
-- ARGV[4]  how many jobs it can run at a time; 0 where that is not known
-- ARGV[5…] fingerprints and components, in turn
-- Returns  nothing.
local now = now_ms()
add_to_index(KEYS[1], now + ARGV[2], ARGV[1])
if ARGV[3] == '0' then
  on_index('ZREM', KEYS[3], ARGV[1])
else
  add_to_index(KEYS[3], now - ARGV[3], ARGV[1])
end
if ARGV[4] ~= (on_index('HGET', KEYS[4], ARGV[1]) or '0') then
  local root = string.match(KEYS[4], '^(.*):slots$')
  redis.call('HSET', KEYS[4], ARGV[1], ARGV[4])
  count_slots(root)
  note_free_turns(root)
end
redis.call('PEXPIRE', KEYS[4], INDEX_LIFETIME_MS)
on_index('HLEN', KEYS[2]) -- reports a key of another type
redis.call('DEL', KEYS[2])
for first = 5, #ARGV, 1000 do -- Lua passes some thousands of arguments at most
  redis.call('HSET', KEYS[2], unpack(ARGV, first, math.min(first + 999, #ARGV)))
end
if #ARGV > 4 then
  redis.call('PEXPIRE', KEYS[2], ARGV[2])
end
