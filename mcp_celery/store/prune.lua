-- Take expired tasks off an owner's list.
--
-- KEYS[1]  sorted set: the owner's list
-- KEYS[2…] hashes: the records of some tasks in it
-- ARGV     the positions of these tasks
-- Returns  nothing.
for place, position in ipairs(ARGV) do
  if redis.call('EXISTS', KEYS[1 + place]) == 0 then
    on_index('ZREM', KEYS[1], position)
  end
end
