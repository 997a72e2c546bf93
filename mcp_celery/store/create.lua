-- Keep a new task: its record, its snapshot, its place in its owner's list and, for a shortened Celery id, the way back
-- to its key; and put the message of its job into the broker's queue, where that is in this database. All but the message
-- expire together; the list lives as long as its longest-lived task. It occupies counters until it ends
-- or expires, and its bytes are counted for as long as they are kept; above a limit nothing is kept.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  string: the snapshot of the creating request
-- KEYS[3]  sorted set: every task, by when it expires
-- KEYS[4]  string: the compound key of a shortened Celery id
-- KEYS[5]  sorted set: jobs that no worker has received, by since when; of a task of exposed jobs: open tasks of exposed
--          jobs, by when to look at their results
-- KEYS[6]  string: the task was taken back
-- KEYS[7]  sorted set, where ARGV[5] is not '': the owner's list
-- Then as many sorted sets as ARGV[8] says: the counters, which hold open tasks by when they expire
-- Then, where ARGV[10] is not '': sorted set: the requestor's tasks of which bytes are kept, likewise
-- Then, where ARGV[11] has a `request`: hash: the task of the request's idempotency key
-- Then one sorted set for each of ARGV[11]'s `rates`: the tasks created in its window, by when
-- Then, where ARGV[12] is not '': list: the broker's queue; and as many lists as ARGV[11]'s `lanes` says: all that holds
--          messages of the queue
-- ARGV[1]  when all of it expires, in ms since the epoch
-- ARGV[2]  the snapshot
-- ARGV[3]  the compound key
-- ARGV[4]  1 if the Celery id is shortened, else 0
-- ARGV[5]  the task's position in the list, or ''
-- ARGV[6]  the task's lifetime in ms
-- ARGV[7]  what the keys of the owner's records begin with
-- ARGV[8]  how many counters the task occupies
-- ARGV[9]  of a task of exposed jobs: when to look at their results first, in ms since the epoch; else ''
-- ARGV[10] how many bytes may be kept for the requestor, or '' for any number
-- ARGV[11] '' or JSON: `request`, digest of what a request with an idempotency key says, and `task`, the task's id;
--          `rates`, for each {how many tasks may be created in a window, how long that is in ms}; `lanes`; `most_waiting`,
--          how many messages may wait in those; `line`, where callers take turns: that of the task's caller
-- ARGV[12] the message of the job, or '': it is published otherwise
-- ARGV[13…] for each counter, how many tasks it may hold; then fields and their values, in turn
-- Returns  0 if it is kept, or was kept before: the answer was lost, and a worker may have claimed the job since. A text
--          where it is kept, and waits for its caller's turn or for a place: how many tasks are before it; its message
--          is in no queue, and its job is not to be published now. The place
--          of the first counter that is full, from 1; when as many bytes are kept for the requestor as may be, below 0:
--          in so many ms the first of its tasks expires. A table where an earlier request had the same idempotency key,
--          whatever the limits are: what `earlier` returns. {n, ms} where the rate in that place, from 1, lets the next
--          task be created in so many ms. {n} where n messages wait, which is as many as may; {text} where the message
--          cannot be put into the queue: why.
-- After how many new tasks of an owner the list is looked at.
local LOOKED_AFTER = 32

local function text_of(ahead)
  return ahead and tostring(ahead) or 0
end

if unless_other_type('HGET', KEYS[1], 'key') == ARGV[3] then
  local ahead = number_ahead(KEYS[1], ARGV[3])
  return text_of(ahead)
end
-- Its request has been answered with an error while this was on its way, and no client waits for it.
if redis.call('EXISTS', KEYS[6]) == 1 then
  return 0
end
local last = #KEYS
local extra = ARGV[11] ~= '' and cjson.decode(ARGV[11]) or {}
local queue
if ARGV[12] ~= '' then
  last = last - 1 - extra.lanes
  queue = last + 1
end
local rates, line = extra.rates or {}, extra.line
last = last - #rates
local first_rate, once = last, nil
if extra.request then
  once = KEYS[last]
  last = last - 1
  local earlier = earlier_task(once, extra.request, ARGV[7], extra.task, ARGV[9] == '')
  if earlier or #asked_for > 0 then
    return earlier
  end
end
local bytes = RECORD_BYTES + #ARGV[2]
local stored
if ARGV[10] ~= '' then
  stored = KEYS[last]
  last = last - 1
  if kept_bytes(stored) + bytes > tonumber(ARGV[10]) then
    local first = redis.call('ZRANGE', stored, 0, 0, 'WITHSCORES')[2]
    return first and math.min(now_ms() - tonumber(first), -1) or -tonumber(ARGV[6])
  end
end
local number, now = tonumber(ARGV[8]), now_ms()
local first_counter = last - number
for place = 1, number do
  local counter = KEYS[first_counter + place]
  on_index('ZREMRANGEBYSCORE', counter, '-inf', now)
  if redis.call('ZCARD', counter) >= tonumber(ARGV[12 + place]) then
    return place
  end
end
for place, rate in ipairs(rates) do
  local created = KEYS[first_rate + place]
  on_index('ZREMRANGEBYSCORE', created, '-inf', now - rate[2])
  local over = redis.call('ZCARD', created) - rate[1]
  if over >= 0 then
    return {place, redis.call('ZRANGE', created, over, over, 'WITHSCORES')[2] + rate[2] - now}
  end
end
local root = line and root_of_line(line, KEYS[1])
local must_wait = root and not may_go(root)
if queue and not must_wait then
  if extra.most_waiting then
    local waiting = 0
    for lane = 1, extra.lanes do
      waiting = waiting + (unless_other_type('LLEN', KEYS[queue + lane]) or 0)
    end
    if waiting >= extra.most_waiting then
      return {waiting}
    end
  end
  -- Before anything is kept, since nothing is then if it fails. No worker sees it before the script has ended.
  local put = redis.pcall('LPUSH', KEYS[queue], ARGV[12])
  if type(put) == 'table' and put.err then
    for _, kind in ipairs({'WRONGTYPE', 'NOPERM', 'undeclared'}) do
      if string.find(put.err, kind, 1, true) then
        return {put.err}
      end
    end
    redis.call('LPUSH', KEYS[queue], ARGV[12]) -- raises the error
  end
end
for place, rate in ipairs(rates) do
  redis.call('ZADD', KEYS[first_rate + place], now, ARGV[3])
  redis.call('PEXPIRE', KEYS[first_rate + place], rate[2])
end
for place = 1, number do
  redis.call('ZADD', KEYS[first_counter + place], ARGV[1], ARGV[3])
  live_at_least(KEYS[first_counter + place], ARGV[6])
end
if stored then
  on_index('ZADD', stored, ARGV[1], ARGV[3])
  keep_bytes(stored, ARGV[3], bytes, on_index)
  count_bytes_for(stored, tonumber(ARGV[6]))
end
redis.call('HSET', KEYS[1], unpack(ARGV, 13 + number))
redis.call('PEXPIREAT', KEYS[1], ARGV[1])
remember(KEYS[1], on_index)
redis.call('SET', KEYS[2], ARGV[2], 'PXAT', ARGV[1])
if once then
  redis.call('DEL', once) -- it may be that of a task which has expired
  redis.call('HSET', once, 'task', extra.task, 'request', extra.request)
  if not queue and not must_wait then
    redis.call('HSET', once, 'publishing', now, 'publisher', extra.task)
  end
  redis.call('PEXPIREAT', once, ARGV[1])
end
add_to_index(KEYS[3], ARGV[1], ARGV[3])
if ARGV[4] == '1' then
  redis.call('SET', KEYS[4], ARGV[3], 'PXAT', ARGV[1])
end
if not must_wait then
  add_to_index(KEYS[5], ARGV[9] == '' and now or ARGV[9], ARGV[3])
end
if ARGV[5] ~= '' then
  on_index('ZADD', KEYS[7], 0, ARGV[5])
  live_at_least(KEYS[7], ARGV[6])
  -- Two looks for each task that comes keep the expired ones below half of the list, whatever their lifetimes.
  local is_looked_at = redis.call('ZCARD', KEYS[7]) % LOOKED_AFTER == 0
  local records, positions = {}, {}
  for _, position in ipairs(redis.call('ZRANDMEMBER', KEYS[7], is_looked_at and 2 * LOOKED_AFTER or 2)) do
    local mark = string.find(position, ':', 1, true)
    if not mark then
      remove_unreadable('ZREM', KEYS[7], position)
    elseif is_looked_at then
      positions[#positions + 1] = position
      records[#records + 1] = ARGV[7] .. string.sub(position, mark + 1)
    end
  end
  if is_looked_at then
    to_do[#to_do + 1] = {'prune', KEYS[7], records, positions}
  end
end
local attended = redis.call('HMGET', KEYS[1], 'abandon_after_ms', 'attended_in')
if attended[1] then
  add_to_index(attended[2], string.format('%.0f', now_ms() + attended[1]), ARGV[3])
end
local ahead
if root and not must_wait then
  occupy(KEYS[1], ARGV[3], window_of(root))
elseif root then
  ahead = await_turn(root, KEYS[1], ARGV[3], line)
end
return text_of(ahead)
