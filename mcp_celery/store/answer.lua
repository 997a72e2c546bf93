-- Take answers, and the questions off the list. With the last one the task goes on: the job that waits, or the next leg.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  channel: the task's changes; the message is the record's new revision
-- KEYS[3]  hash: the questions
-- KEYS[4]  hash: the answers
-- KEYS[5]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  now, in ms since the epoch
-- ARGV[2]  when the next leg is too late, in ms since the epoch, or '' for never
-- ARGV[3…] keys and their answers, in turn
-- Returns  nil when there is no record, else {1 if any was taken, 1 if the next leg is due by it, flattened record}. A leg that
--          waits for its caller's turn is not due.
local current = redis.call('HMGET', KEYS[1], 'status', 'parked', 'key', 'line')
if not current[1] then
  return nil
end
local first_due = first_answer(KEYS[1], 'answered', ARGV[1])
if first_due then
  return {1, tonumber(first_due), redis.call('HGETALL', KEYS[1])}
end
if current[2] and not are_declared(keys_of_turn(KEYS[1], current[4])) then
  return nil
end
local taken, due = 0, 0
if current[1] == 'input_required' then
  for i = 3, #ARGV, 2 do
    if redis.call('HDEL', KEYS[3], ARGV[i]) == 1 then
      redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1])
      taken = 1
    end
  end
end
if taken == 1 then
  redis.call('PEXPIRE', KEYS[4], rest_of_life(KEYS[1]))
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('HSET', KEYS[1], 'status', 'working')
    if current[2] then
      redis.call('HDEL', KEYS[1], 'parked')
      if not current[4] or take_turn(KEYS[1], current[3], current[4]) then
        due = 1
        add_to_index(KEYS[5], now_ms(), current[3])
      end
      if ARGV[2] ~= '' then
        redis.call('HSET', KEYS[1], 'start_before_ms', ARGV[2])
      end
    end
  end
  tell(KEYS[1], KEYS[2], ARGV[1])
  note_answer(KEYS[1], 'answered', current[1], ARGV[1], due)
end
return {taken, due, redis.call('HGETALL', KEYS[1])}
