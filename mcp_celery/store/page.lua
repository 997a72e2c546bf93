-- Read a part of an owner's list, the newest task first. What has expired is taken off the list and not counted.
--
-- KEYS[1]  sorted set: the owner's list
-- ARGV[1]  what the keys of the owner's records begin with
-- ARGV[2]  where to begin, as ZRANGE … BYLEX takes it: '+' or '(position'
-- ARGV[3]  how many tasks at most
-- Also reads the records and, of open ones, the keys named in their field `result_key`.
-- Returns  {{flattened record, stored result or false, no questions}, …}.
local found, from, wanted = {}, ARGV[2], tonumber(ARGV[3])
while #found < wanted do
  local positions = redis.call('ZRANGE', KEYS[1], from, '-', 'BYLEX', 'REV', 'LIMIT', 0, wanted - #found)
  if #positions == 0 then
    break
  end
  for _, position in ipairs(positions) do
    local key = ARGV[1] .. string.sub(position, string.find(position, ':', 1, true) + 1)
    local state = redis.call('HMGET', key, 'status', 'result_key')
    if not state[1] then
      redis.call('ZREM', KEYS[1], position)
    else
      local result = is_open(state[1]) and state[2] and redis.call('GET', state[2])
      found[#found + 1] = {redis.call('HGETALL', key), result, {}}
    end
  end
  from = '(' .. positions[#positions]
end
return found
