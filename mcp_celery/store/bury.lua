-- Forget a worker that has stopped, or that has died. One that counts as dead may have beaten since: then it stays. So does
-- one with a claim that the store noted after the last look at its claims, for the next sweep.
--
-- KEYS[1]  sorted set: the workers, by the time until which their last heartbeat holds
-- KEYS[2]  hash: the worker's components, by fingerprint
-- KEYS[3]  sorted set: workers that may have messages which they have not read, by since when
-- KEYS[4]  hash: how many jobs each worker can run at a time
-- KEYS[5]  set: the worker's claims
-- ARGV[1]  the worker
-- ARGV[2]  1 where it counts as dead, else 0
-- Returns  1; 0 where it stays.
local beat = on_index('ZSCORE', KEYS[1], ARGV[1])
if ARGV[2] == '1' and beat and tonumber(beat) > now_ms() then
  return 0
end
if on_index('SCARD', KEYS[5]) > 0 then
  add_to_index(KEYS[1], now_ms(), ARGV[1])
  return 0
end
on_index('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
on_index('ZREM', KEYS[3], ARGV[1])
on_index('HDEL', KEYS[4], ARGV[1])
return 1
