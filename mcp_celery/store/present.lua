-- Which of several tasks there are.
--
-- KEYS[1…] hashes: the task records
-- Returns  the positions of those that exist, from 1.
local found = {}
for position, record in ipairs(KEYS) do
  if redis.call('EXISTS', record) == 1 then
    found[#found + 1] = position
  end
end
return found
