-- Let an open task live longer than it would.
--
-- KEYS[1]  hash: the task record
-- KEYS[2]  hash: the questions
-- KEYS[3]  hash: the answers
-- KEYS[4]  string: the snapshot of the creating request
-- KEYS[5]  sorted set: every task, by when it expires
-- ARGV[1]  until when it has to live at least, in ms since the epoch
-- ARGV[2]  its longest life, in ms
-- Returns  nothing.
if is_open(redis.call('HGET', KEYS[1], 'status')) and are_declared(keys_of_life(KEYS[1])) then
  live_until(KEYS[1], {KEYS[2], KEYS[3], KEYS[4]}, KEYS[5], ARGV[1], ARGV[2])
end
