-- Behind every script, which is the function act: its reply. Where it removed something that cannot be read, the reply is
-- {the mark, what was removed, the script's own reply}, so that the process that called the script logs it.
local reply = act()
if #removed_as_unreadable == 0 then
  return reply
end
return {REMOVED_MARK, removed_as_unreadable, reply}
