-- The tasks of exposed jobs whose results are to be read now. The caller has them for one interval, so that servers
-- share them; those that have ended or expired, and what cannot be read, are taken off the index.
--
-- KEYS[1]  sorted set: open tasks of exposed jobs, by when to look at their results
-- ARGV[1]  the interval, in ms
-- ARGV[2]  how many tasks at most
-- ARGV[3]  what the keys of records begin with
-- It asks for the records; those that become due meanwhile are found the next time.
-- Returns  {how many tasks are open, compound keys and flattened records, in turn, of those that are due}.
local now, found = now_ms(), {}
local due = on_index('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
local function record_at(key)
  local owner = string.match(key, '^auth:[^:]+:[^:]+') or string.match(key, '^anon:[^:]+')
  return owner and ARGV[3] .. owner
end

for _, key in ipairs(MORE == 0 and due or {}) do
  are_declared({record_at(key)})
end
if #asked_for > 0 then
  return nil
end
for _, key in ipairs(due) do
  local record = record_at(key)
  if not record or DECLARED[record] then
    local task = record and unless_other_type('HMGET', record, 'status', 'key')
    if not task or (task[1] and task[2] ~= key) then
      remove_unreadable('ZREM', KEYS[1], key)
    elseif is_open(task[1]) then
      add_to_index(KEYS[1], now + ARGV[1], key)
      found[#found + 1] = key
      found[#found + 1] = redis.call('HGETALL', record)
    else
      redis.call('ZREM', KEYS[1], key)
    end
  end
end
return {redis.call('ZCARD', KEYS[1]), found}
