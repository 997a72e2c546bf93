-- Look at some tasks that have places of a limit: those that are gone or have ended have none.
--
-- KEYS[1]  sorted set: tasks that have the places, by when they expire
-- KEYS[2…] hashes: the records of some of them
-- ARGV     the compound keys of these tasks
-- Returns  nothing.
for place, key in ipairs(ARGV) do
  local task = unless_other_type('HMGET', KEYS[1 + place], 'key', 'status')
  if not task or (task[1] and task[1] ~= key) then
    remove_unreadable('ZREM', KEYS[1], key)
  elseif not is_open(task[2]) then
    redis.call('ZREM', KEYS[1], key)
  end
end
