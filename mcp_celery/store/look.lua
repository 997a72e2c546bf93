-- Look at tasks that wait: whether they are where their records say. Nothing of this changes anything unless keys were lost, or
-- tasks have expired.
--
-- KEYS[1]  sorted set: tasks that wait for a place of a limit, or for their caller's turn, by when the reaper has looked at them
-- KEYS[2]  sorted set: the lines of callers, in the order in which they have their turns
-- ARGV[1]  what the names of all keys begin with
-- ARGV[2…] compound keys of some tasks that wait
-- Returns  the limits that they wait for; the window, where one waits for its turn.
local root, names = ARGV[1], {}
for place = 2, #ARGV do
  local key = ARGV[place]
  local record = record_of(root, key)
  local task = record and is_declared(record) and unless_other_type('HMGET', record, 'waits_in')
  if task and task[1] then
    are_declared(keys_of_waiting(record, task[1]))
  end
end
if #asked_for > 0 then
  return nil
end
local seen = {}
for place = 2, #ARGV do
  local key = ARGV[place]
  local record = record_of(root, key)
  local task = record and unless_other_type('HMGET', record, 'key', 'status', 'waits_in')
  local name = task and task[3]
  if not on_index('ZSCORE', KEYS[1], key) then
    name = nil -- it goes on meanwhile
  elseif not task or (task[1] and task[1] ~= key) then
    remove_unreadable('ZREM', KEYS[1], key)
    name = nil
  elseif task[2] == 'working' and root_of_line(name, record) == root then
    wait_for_turn(root, record, key, name)
    name = window_of(root)
  elseif task[2] ~= 'working' or not name or root_of_limit(name, record) ~= root then
    redis.call('ZREM', KEYS[1], key)
    name = nil
  else
    wait_for_place(record, key, name)
  end
  if name and not seen[name] then
    seen[name] = true
    names[#names + 1] = name
  end
end
return names
