-- In front of every script: requests with an idempotency key, of which one task is made. A hash leads from the key to the
-- task: `task`, its id; `request`, a digest of what the request said; `publishing`, since when (ms since the epoch) the
-- first job is being published, absent once the broker has it; `publisher`, the task id that the request which publishes
-- it has, or would have, given its task.

-- The task that an earlier request with the key has created. `request`: a digest of what this one says. `records`: what the
-- keys of the caller's records begin with. `publisher`: the id that this request's own task would have. `may_publish`:
-- whether the job may be published a second time; where its request has died this one publishes it then.
-- Returns  nil: there is none, or the script asks for its record; else {its id, 1 if both say the same, 'published', 'publishing' or 'unpublished'}.
local function earlier_task(once, request, records, publisher, may_publish)
  local kept = on_index('HMGET', once, 'task', 'request', 'publishing', 'publisher')
  if not kept[1] or not is_declared(records .. kept[1]) or unless_other_type('HGET', records .. kept[1], 'task_id') ~= kept[1] then
    return nil
  end
  local is_same, publication = kept[2] == request, 'published'
  if is_same and kept[3] then
    local now = now_ms()
    local is_over = now - (tonumber(kept[3]) or 0) >= PUBLISHING_MS
    if kept[4] == publisher or (is_over and may_publish) then
      redis.call('HSET', once, 'publishing', kept[4] == publisher and kept[3] or now, 'publisher', publisher)
      publication = 'unpublished'
    elseif not is_over then
      publication = 'publishing'
    end
  end
  return {kept[1], is_same and 1 or 0, publication}
end

-- Whether a task may be taken back: no other request with its key may have had it as an answer.
local function is_only_request(once, task)
  local kept = unless_other_type('HMGET', once, 'task', 'publishing', 'publisher')
  return not kept or kept[1] ~= task or (kept[2] and kept[3] == task)
end

-- Forget which task a key leads to, if it leads to that one.
local function forget_once(once, task)
  if unless_other_type('HGET', once, 'task') == task then
    redis.call('DEL', once)
  end
end

