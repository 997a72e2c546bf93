-- Take back a task whose job was never published.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- KEYS[3]  sorted set: every task, by when it expires
-- KEYS[4]  hash: what is known of tasks when their records have expired
-- KEYS[5]  sorted set: jobs that no worker has received, by since when
-- KEYS[6]  string: the task was taken back
-- It asks for what the record's fields `alias`, `listed_in`, `counted_in`, `stored_in` and `idempotency_in` name.
-- ARGV[1]  what the names of the workers' claims begin with
-- ARGV[2]  for how long its creation may still arrive, over a connection that was held up, in ms; it creates nothing then
-- Returns  0 when the task stays: its job has begun, for the message has arrived although it seemed lost; or another request
--          with the same idempotency key has the task; else 1.
local record = redis.call('HMGET', KEYS[1], 'key', 'alias', 'listed_in', 'listed_at', 'started_retries', 'stored_in',
  'idempotency_in', 'task_id')
if record[5] then
  return 0
end
are_declared(keys_of_end(KEYS[1], ARGV[1]))
if not are_declared(keys_of_life(KEYS[1])) then
  return 0
end
if record[7] and not is_only_request(record[7], record[8]) then
  return 0
end
redis.call('SET', KEYS[6], '', 'PX', ARGV[2])
let_go_for_good(KEYS[1], ARGV[1], KEYS[5])
if record[1] then
  on_index('ZREM', KEYS[3], record[1])
  on_index('HDEL', KEYS[4], record[1])
end
if record[6] then
  keep_bytes(record[6], record[1], 0, unless_other_type)
end
if record[7] then
  forget_once(record[7], record[8])
end
if record[3] then
  unless_other_type('ZREM', record[3], record[4])
end
redis.call('DEL', KEYS[1], record[2] or KEYS[1]) -- the snapshot is gone, as that of a task that has ended
return 1
