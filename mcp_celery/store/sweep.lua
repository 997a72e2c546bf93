-- What there is to do for the one process that reaps.
--
-- KEYS[1]  string: which process reaps, until its next sweep is overdue
-- KEYS[2]  sorted set: the workers, by the time until which their last heartbeat holds
-- KEYS[3]  sorted set: every task, by when it expires
-- KEYS[4]  sorted set: tasks whose next job is still to be published, by since when
-- KEYS[5]  hash: what is known of tasks when their records have expired
-- KEYS[6]  sorted set: jobs that no worker has received, by since when
-- KEYS[7]  sorted set: workers that may have messages which they have not read, by since when
-- KEYS[8]  sorted set: tasks that their owners may abandon, by when they will have
-- KEYS[9]  sorted set: tasks that wait for a place of a limit, by when the reaper has looked at them
-- KEYS[10] hash: how many jobs each worker can run at a time
-- KEYS[11] sorted set: the lines of callers, in the order in which they have their turns
-- KEYS[12] sorted set: tasks that the reaper need not look at, by when they expire
-- ARGV[1]  the process that asks
-- ARGV[2]  for how long it is elected, in ms
-- ARGV[3]  how far to look ahead and back for tasks that expire, in ms; those before that are forgotten
-- ARGV[4]  grace period before the reaper publishes a due job itself, in ms
-- ARGV[5]  the most of each kind to return
-- ARGV[6]  the most of those that expire about now
-- ARGV[7]  since when unclaimed jobs are looked at, in ms
-- ARGV[8]  how many of them are left out, the oldest first
-- ARGV[9]  the most of them to return
-- ARGV[10] how many of the tasks that wait for a place to look at
-- ARGV[11] the most of those to take off their index that have expired
-- Returns  nil when another process reaps, else {now in ms, dead workers, tasks to forget and their times, expiring tasks and
--          their times, tasks due, unclaimed jobs and their times, the worker that may have had unread messages for
--          longest and since when, abandoned tasks, tasks that wait for a place}.
local elected = on_index('GET', KEYS[1])
-- A process is elected for a time. What stands there for ever was not written by one.
if elected and elected ~= ARGV[1] and redis.call('PTTL', KEYS[1]) > 0 then
  return nil
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
on_index('HLEN', KEYS[5])
local root = string.match(KEYS[9], '^(.*):waiting$')
count_slots(root)
note_free_turns(root)
local now = now_ms()
local expired = math.min(on_index('ZCOUNT', KEYS[12], '-inf', now), tonumber(ARGV[11]))
if expired > 0 then
  redis.call('ZREMRANGEBYRANK', KEYS[12], 0, expired - 1)
end
return {
  now,
  on_index('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[5]),
  on_index('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[5]),
  on_index('ZRANGEBYSCORE', KEYS[3], '(' .. now - ARGV[3], now + ARGV[3], 'WITHSCORES', 'LIMIT', 0, ARGV[6]),
  on_index('ZRANGEBYSCORE', KEYS[4], '-inf', now - ARGV[4], 'LIMIT', 0, ARGV[5]),
  on_index('ZRANGEBYSCORE', KEYS[6], '-inf', now - ARGV[7], 'WITHSCORES', 'LIMIT', ARGV[8], ARGV[9]),
  on_index('ZRANGE', KEYS[7], 0, 0, 'WITHSCORES'),
  on_index('ZRANGEBYSCORE', KEYS[8], '-inf', now, 'LIMIT', 0, ARGV[5]),
  on_index('ZRANGE', KEYS[9], 0, ARGV[10] - 1),
}
