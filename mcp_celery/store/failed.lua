-- Count look-ups of a requestor that found nothing. The first of them begins a window, which ends by itself.
--
-- KEYS[1]  string: how many there have been in this window
-- ARGV[1]  how many more
-- ARGV[2]  how long a window is, in ms
-- Returns  {how many there have been, what is left of the window in ms}.
local number = on_index('INCRBY', KEYS[1], ARGV[1])
if number == tonumber(ARGV[1]) then
  redis.call('PEXPIRE', KEYS[1], ARGV[2])
end
return {number, rest_of_life(KEYS[1])}
