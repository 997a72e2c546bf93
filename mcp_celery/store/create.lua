-- Keep a new task: its record, its snapshot, its place in its owner's list and, for a shortened Celery id, the way back
-- to its key. All expire together; the list lives as long as its longest-lived task.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- KEYS[3]  sorted set: every task, by when it expires
-- KEYS[4]  string: the compound key of a shortened Celery id
-- KEYS[5]  sorted set, optional: the owner's list
-- ARGV[1]  when all of it expires, in ms since the epoch
-- ARGV[2]  the snapshot
-- ARGV[3]  the compound key
-- ARGV[4]  1 if the Celery id is shortened, else 0
-- ARGV[5]  the task's position in the list
-- ARGV[6]  the task's lifetime in ms
-- ARGV[7]  what the keys of the owner's records begin with
-- ARGV[8…] fields and their values, in turn
-- Returns  nothing.
redis.call('HSET', KEYS[1], unpack(ARGV, 8))
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'PXAT', ARGV[1])
add_to_index(KEYS[3], ARGV[1], ARGV[3])
if ARGV[4] == '1' then
  redis.call('SET', KEYS[4], ARGV[3], 'PXAT', ARGV[1])
end
if KEYS[5] then
  redis.call('ZADD', KEYS[5], 0, ARGV[5])
  if redis.call('PTTL', KEYS[5]) < tonumber(ARGV[6]) then
    redis.call('PEXPIREAT', KEYS[5], ARGV[1])
  end
  -- Two looks for each task that comes keep the expired ones below half of the list, whatever their lifetimes.
  for _, position in ipairs(redis.call('ZRANDMEMBER', KEYS[5], 2)) do
    if redis.call('EXISTS', ARGV[7] .. string.sub(position, string.find(position, ':', 1, true) + 1)) == 0 then
      redis.call('ZREM', KEYS[5], position)
    end
  end
end
