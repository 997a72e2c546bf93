-- Give the free places of a limit to the tasks that wait for them. One that has to wait for a further limit waits there.
-- It gives places to tasks whose records are declared, and asks for the next ones.
--
-- KEYS[1]  sorted set: tasks that have the places of the limit, by when they expire
-- KEYS[2]  sorted set: tasks that wait for one, by when they were created
-- KEYS[3]  sorted set: tasks that wait for a place of any limit
-- KEYS[4]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  what the names of all keys begin with
-- Returns  nothing.
local root, waiting = ARGV[1], KEYS[2]

for _ = 1, MOST_GRANTED do
  local key = on_index('ZRANGE', waiting, 0, 0)[1]
  if not key then
    return
  end
  local record = record_of(root, key)
  if record and not is_declared(record) then
    ask_for_records(root, waiting, math.min(2 * MORE + 1, MOST_GRANTED)) -- each time of twice as many
    return
  end
  local task = record and unless_other_type('HMGET', record, 'key', 'status', 'waits_in', 'limits')
  if not task or (task[1] and task[1] ~= key) then
    remove_unreadable('ZREM', waiting, key)
  elseif task[2] ~= 'working' or task[3] ~= KEYS[1] then
    redis.call('ZREM', waiting, key)
  else
    local limits = limits_in(task[4], record)
    if not are_declared(keys_of_limits(record, limits)) then
      return
    end
    for _, limit in ipairs(limits) do
      if limit.name == KEYS[1] and not has_place(limit) then
        return
      end
    end
    redis.call('ZREM', waiting, key)
    redis.call('HDEL', record, 'waits_in')
    occupy(record, key, KEYS[1])
    local next_one = take_places(record, key, limits)
    if next_one then
      wait_for_place(record, key, next_one)
    else
      go_on(root, record, key)
    end
  end
end
