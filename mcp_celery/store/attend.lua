-- Note that the owner of an open task is there, so that it is not abandoned for a time.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  sorted set: tasks that their owners may abandon, by when they will have
-- Returns  1 if it is noted; 0 when the task is unknown, has ended, or is never abandoned.
local task = redis.call('HMGET', KEYS[1], 'abandon_after_ms', 'status', 'key')
if not task[1] or not is_open(task[2]) then
  return 0
end
add_to_index(KEYS[2], string.format('%.0f', now_ms() + task[1]), task[3])
return 1
