-- Keep a new task: its record, its snapshot and, for a shortened Celery id, the way back to its key. All expire
-- together.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- KEYS[3]  string, optional: the compound key of a shortened Celery id
-- ARGV[1]  when all of it expires, in ms since the epoch
-- ARGV[2]  the snapshot
-- ARGV[3]  the compound key
-- ARGV[4…] fields and their values, in turn
-- Returns  nothing.
redis.call('HSET', KEYS[1], unpack(ARGV, 4))
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
redis.call('SET', KEYS[2], ARGV[2], 'PXAT', ARGV[1])
if KEYS[3] then
  redis.call('SET', KEYS[3], ARGV[3], 'PXAT', ARGV[1])
end
