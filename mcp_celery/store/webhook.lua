-- Take a webhook to deliver it, unless another process has it; or let it be due again later.
--
-- KEYS[1]  sorted set: webhooks that no receiver has taken, by when they are due
-- KEYS[2]  hash: what the webhook tells
-- ARGV[1]  its id
-- ARGV[2]  for how long it is the caller's, or after what time it is due, in ms
-- ARGV[3]  'take'; 'tried', where its receiver was asked and did not take it; 'untried', where it was not asked
-- Returns  nil when there is none, or another process has it; else what it reports, flattened.
local taken = redis.call('HMGET', KEYS[2], 'key', 'taken_until_ms')
if not taken[1] or not on_index('ZSCORE', KEYS[1], ARGV[1]) then
  return nil
end
local now = now_ms()
if ARGV[3] == 'take' and tonumber(taken[2] or 0) > now then
  return nil
end
local ends = string.format('%.0f', now + ARGV[2])
redis.call('ZADD', KEYS[1], ends, ARGV[1])
if ARGV[3] == 'take' then
  redis.call('HSET', KEYS[2], 'taken_until_ms', ends)
else
  redis.call('HDEL', KEYS[2], 'taken_until_ms', 'published')
  if ARGV[3] == 'tried' then
    redis.call('HINCRBY', KEYS[2], 'attempts', 1)
  end
end
return redis.call('HGETALL', KEYS[2])
