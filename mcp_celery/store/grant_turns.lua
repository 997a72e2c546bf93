-- Let tasks go on, one of each line in turn, while the broker may have more jobs. It goes on with tasks whose records and
-- lines are declared, and asks for the next ones.
--
-- KEYS[1]  sorted set: tasks whose jobs the broker may have, by when they expire
-- KEYS[2]  sorted set: the lines of callers, in the order in which they have their turns
-- KEYS[3]  hash: how many jobs each worker can run at a time
-- KEYS[4]  sorted set: tasks that wait for a turn, or for a place of a limit
-- KEYS[5]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  what the names of all keys begin with
-- Returns  nothing.
local root, turns = ARGV[1], KEYS[2]

local function is_line(name)
  return string.match(name, '^(.*):turns:[^:]+$') == root
end

-- Ask for the next lines and the records of their first tasks: each time for twice as many.
local function ask_for_next()
  local most = math.min(2 * MORE + 1, MOST_GRANTED)
  for _, line in ipairs(on_index('ZRANGE', turns, 0, most)) do
    if is_line(line) and is_declared(line) then
      ask_for_records(root, line, 1)
    end
  end
end

for _ = 1, MOST_GRANTED do
  local line = on_index('ZRANGE', turns, 0, 0)[1]
  if not line or not has_room(root) then
    return
  end
  if not is_line(line) then
    remove_unreadable('ZREM', turns, line)
  elseif not is_declared(line) then
    ask_for_next()
    return
  else
    local key = on_index('ZRANGE', line, 0, 0)[1]
    local record = key and record_of(root, key)
    if record and not is_declared(record) then
      ask_for_next()
      return
    end
    local task = record and unless_other_type('HMGET', record, 'key', 'status', 'waits_in')
    if not key then
      redis.call('ZREM', turns, line)
    elseif not task or (task[1] and task[1] ~= key) then
      remove_unreadable('ZREM', line, key)
    elseif task[2] ~= 'working' or task[3] ~= line then
      redis.call('ZREM', line, key)
    else
      leave_line(record, key, line)
      if redis.call('EXISTS', line) == 1 then
        go_last(root, line)
      end
      occupy(record, key, window_of(root))
      go_on(root, record, key)
    end
  end
end
