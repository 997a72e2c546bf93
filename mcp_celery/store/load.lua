-- Read a task: its record, the job's stored result where Celery keeps it in this Redis, and its open questions.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  hash: the questions
-- ARGV[1]  1 to read the job's result, which is in the key that the record's field `result_key` names; else 0
-- Returns  nil when there is no record, else {flattened record, stored result or false, flattened questions}.
local record = redis.call('HGETALL', KEYS[1])
if #record == 0 then
  return nil
end
local status, result_key
for i = 1, #record, 2 do
  if record[i] == 'status' then
    status = record[i + 1]
  elseif record[i] == 'result_key' then
    result_key = record[i + 1]
  end
end
-- The record alone describes a failed or cancelled task; an open one may have a result that was not reported.
local result = false
if ARGV[1] == '1' and result_key and status ~= 'failed' and status ~= 'cancelled' then
  if not is_declared(result_key) and #asked_for > 0 then
    return nil
  end
  result = unless_other_type('GET', result_key) or false
end
return {record, result, status == 'input_required' and on_index('HGETALL', KEYS[2]) or {}}
