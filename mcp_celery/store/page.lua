-- Read some tasks of an owner's list. What has expired, and what cannot be read, is taken off the list.
--
-- KEYS[1]  sorted set: the owner's list
-- KEYS[2…] hashes: the records
-- ARGV[1]  1 to read the results of open tasks, which are in the keys that their records' field `result_key` names; else 0
-- ARGV[2…] the positions of these tasks in the list
-- Returns  {{position, flattened record, stored result or false, no questions}, …}.
local states = {}
for place = 2, #KEYS do
  local state = unless_other_type('HMGET', KEYS[place], 'status', 'result_key')
  states[place] = state
  if state and ARGV[1] == '1' and is_open(state[1]) and state[2] then
    is_declared(state[2])
  end
end
if #asked_for > 0 then
  return nil
end
local found = {}
for place = 2, #KEYS do
  local state, position = states[place], ARGV[place]
  if not state then
    remove_unreadable('ZREM', KEYS[1], position)
  elseif not state[1] then
    on_index('ZREM', KEYS[1], position)
  else
    local is_read = ARGV[1] == '1' and is_open(state[1]) and state[2]
    local result = is_read and unless_other_type('GET', state[2]) or false
    found[#found + 1] = {position, redis.call('HGETALL', KEYS[place]), result, {}}
  end
end
return found
