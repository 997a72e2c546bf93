-- Call a command on an index of all tasks, or on another key that is deleted when it holds another type.
--
-- KEYS[1]  the index
-- ARGV[1]  the command
-- ARGV[2…] its arguments after the key
-- Returns  its reply.
return on_index(ARGV[1], KEYS[1], unpack(ARGV, 2))
