-- The mark of this store, which distinguishes it from others. Each read keeps it alive.
--
-- KEYS[1]  string: the mark
-- ARGV[1]  what becomes the mark where there is none, or ''
-- Returns  the mark; nil where there is none.
local mark = on_index('GET', KEYS[1])
if mark and not string.find(mark, '^%x+@%d+$') then
  redis.call('DEL', KEYS[1])
  removed_as_unreadable[#removed_as_unreadable + 1] = {KEYS[1], false}
  mark = false
end
if not mark and ARGV[1] ~= '' then
  mark = ARGV[1]
  redis.call('SET', KEYS[1], mark)
end
if mark then
  redis.call('PEXPIRE', KEYS[1], INDEX_LIFETIME_MS)
end
return mark
