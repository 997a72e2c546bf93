-- Behind every script, which is the function act: its reply. Where it changed tasks, or removed something that cannot be
-- read, the reply is {the mark, what was removed, transitions, the script's own reply}, so that the process that called
-- the script logs the one and notifies its observers of the other.
local reply = act()
if #removed_as_unreadable == 0 and #transitions == 0 then
  return reply
end
return {REPLY_MARK, removed_as_unreadable, transitions, reply}
