-- The webhooks that are due, which are the caller's for a time: it has them delivered.
--
-- KEYS[1]  sorted set: webhooks that no receiver has taken, by when they are due
-- ARGV[1]  the most of them to return
-- ARGV[2]  what the names of their hashes begin with
-- ARGV[3]  for how long they are the caller's, in ms; it doubles each time
-- ARGV[4]  the longest such time, in ms
-- It asks for the hashes; those that become due meanwhile are found the next time.
-- Returns  their ids.
local now, found = now_ms(), {}
local due = on_index('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[1])
local function is_id(id)
  return string.find(id, '^msg_%x+$')
end

for _, id in ipairs(MORE == 0 and due or {}) do
  if is_id(id) then
    is_declared(ARGV[2] .. id)
  end
end
if #asked_for > 0 then
  return nil
end
for _, id in ipairs(due) do
  local webhook = ARGV[2] .. id
  if not is_id(id) then
    remove_unreadable('ZREM', KEYS[1], id)
  elseif DECLARED[webhook] and redis.call('EXISTS', webhook) == 0 then
    redis.call('ZREM', KEYS[1], id)
  elseif DECLARED[webhook] then
    local times = unless_other_type('HINCRBY', webhook, 'published', 1) or 1
    local pause = math.min(tonumber(ARGV[3]) * 2 ^ (times - 1), tonumber(ARGV[4]))
    redis.call('ZADD', KEYS[1], string.format('%.0f', now + pause), id)
    found[#found + 1] = id
  end
end
return found
