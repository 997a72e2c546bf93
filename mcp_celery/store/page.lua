-- Read a part of an owner's list, the newest task first. What has expired, and what cannot be read, is taken off the list
-- and not counted.
--
-- KEYS[1]  sorted set: the owner's list
-- ARGV[1]  what the keys of the owner's records begin with
-- ARGV[2]  where to begin, as ZRANGE … BYLEX takes it: '+' or '(position'
-- ARGV[3]  how many tasks at most
-- Also reads the records and, of open ones, the keys named in their field `result_key`.
-- Returns  {{position, flattened record, stored result or false, no questions}, …}.
local found, from, wanted = {}, ARGV[2], tonumber(ARGV[3])
while #found < wanted do
  local positions = on_index('ZRANGE', KEYS[1], from, '-', 'BYLEX', 'REV', 'LIMIT', 0, wanted - #found)
  if #positions == 0 then
    break
  end
  for _, position in ipairs(positions) do
    local mark = string.find(position, ':', 1, true)
    local key = mark and ARGV[1] .. string.sub(position, mark + 1)
    local state = key and unless_other_type('HMGET', key, 'status', 'result_key')
    if not state then
      remove_unreadable('ZREM', KEYS[1], position)
    elseif not state[1] then
      redis.call('ZREM', KEYS[1], position)
    else
      local result = is_open(state[1]) and state[2] and unless_other_type('GET', state[2]) or false
      found[#found + 1] = {position, redis.call('HGETALL', key), result, {}}
    end
  end
  from = '(' .. positions[#positions]
end
return found
