-- A sample of the tasks whose jobs live workers have.
--
-- KEYS[1]  sorted set: the workers, by the time until which their last heartbeat holds
-- ARGV[1]  what the names of the workers' claims begin with
-- ARGV[2]  the most workers
-- ARGV[3]  the most tasks of each
-- Returns  compound keys.
local found = {}
local live = on_index('ZRANGEBYSCORE', KEYS[1], now_ms(), '+inf', 'LIMIT', 0, ARGV[2])
for _, worker in ipairs(live) do
  is_declared(ARGV[1] .. worker)
end
if #asked_for > 0 then
  return nil
end
for _, worker in ipairs(live) do
  for _, task in ipairs(on_index('SRANDMEMBER', ARGV[1] .. worker, ARGV[3])) do
    found[#found + 1] = task
  end
end
return found
