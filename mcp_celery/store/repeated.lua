-- In front of every script: calls that are made again because their answer was lost. Such a call changes nothing, gets its
-- first answer, and its change is reported, because it was not reported yet. A record keeps the last calls that changed it:
-- one a line, as 'name,status before,status after,attempt,leg,answer'.

-- The name of this call, '' for one without a name. The processes that call a script put it behind the arguments.
local CALL = table.remove(ARGV)
-- How many calls a record keeps while its task is open. The last one is kept when it has ended: nothing moves it any more.
local MOST_CALLS = 4

-- What this call was answered the first time; nil if it is the first time. `cause`, `at`: of its change, as for `note`;
-- where the cause is a function, it gives the cause of an answer.
local function first_answer(record, cause, at)
  if CALL == '' then
    return nil
  end
  for call in string.gmatch(redis.call('HGET', record, 'calls') or '', '[^\n]+') do
    local name, before, after, attempt, leg, answer = string.match(call, '^(%w+),([^,]+),([^,]+),(%d+),(%d+),(.+)$')
    if name == CALL then
      local task = redis.call('HMGET', record, 'key', 'declared_as', 'created_at_ms', 'started_at_ms', 'is_error')
      cause = type(cause) == 'function' and cause(answer) or cause
      transitions[#transitions + 1] = {cause, before, string.format('%.0f', tonumber(at)), task[1], task[2], after,
        attempt, leg, unpack(task, 3, 5)}
      return answer
    end
  end
  return nil
end

-- Note a change that this call has made (see `note`), and keep what it is answered.
local function note_answer(record, cause, before, at, answer)
  note(record, cause, before, at)
  if CALL == '' then
    return
  end
  local task = redis.call('HMGET', record, 'status', 'attempt', 'leg', 'calls')
  local calls = table.concat({CALL, before, tostring(task[1]), tostring(task[2]), tostring(task[3]), answer}, ',')
  if is_open(task[1]) then
    local kept = 1
    for call in string.gmatch(task[4] or '', '[^\n]+') do
      kept = kept + 1
      if kept > MOST_CALLS then
        break
      end
      calls = calls .. '\n' .. call
    end
  end
  redis.call('HSET', record, 'calls', calls)
end
