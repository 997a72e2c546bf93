-- Behind every script, which is the function act: its reply. Where it changed tasks, removed something that cannot be
-- read, asks for keys or leaves something to do, the reply is {the mark, what was removed, transitions, the keys that it asks
-- for, the scripts to call next, the script's own reply}. The process that called the script logs what was removed, notifies
-- its observers of the transitions, and calls the script again where it asks for keys.
local reply = act()
if #removed_as_unreadable == 0 and #transitions == 0 and #asked_for == 0 and #to_do == 0 then
  return reply
end
return {REPLY_MARK, removed_as_unreadable, transitions, asked_for, to_do, reply}
