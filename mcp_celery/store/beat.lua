-- A worker's heartbeat.
--
-- KEYS[1]  sorted set: the workers, by the time until which their last heartbeat holds
-- ARGV[1]  the worker
-- ARGV[2]  how long this heartbeat holds, in ms
-- Returns  nothing.
add_to_index(KEYS[1], now_ms() + ARGV[2], ARGV[1])
