-- Read a task: its record, and the job's stored result where Celery keeps it in this Redis.
--
-- KEYS[1]  hash: the task record
-- Also reads the key named in the record's field `result_key`, and writes nothing.
-- Returns  nil when there is no record, else {flattened record, stored result or false}.
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
-- A failed or cancelled task is told by its record alone; an open one may have a result that nobody told of.
if not result_key or status == 'failed' or status == 'cancelled' then
  return {record, false}
end
return {record, redis.call('GET', result_key)}
