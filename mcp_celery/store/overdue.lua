-- The tasks whose next job should have been published by now.
--
-- KEYS[1]  sorted set: tasks whose next job is still to be published, by since when
-- ARGV[1]  grace period before a due job is published by a process that has not made it due, in ms
-- ARGV[2]  the most of them to return
-- Returns  their compound keys, those that have been due for longest first.
return on_index('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms() - ARGV[1], 'LIMIT', 0, ARGV[2])
