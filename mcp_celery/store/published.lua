-- Note that the leg that was due is with the broker.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  attempt of the leg
-- Returns  1 if noted; 0 when it was already, or the task counts another attempt by now.
local current = redis.call('HMGET', KEYS[1], 'attempt', 'key')
if current[1] ~= ARGV[1] then
  return 0
end
return on_index('ZREM', KEYS[2], current[2])
