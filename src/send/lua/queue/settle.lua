-- ARGV: id, client, token, status, attempt or "", result.
free()
local id, client, token, status, attempt, result = unpack(ARGV)
if not mine(id, token) then return 0 end
note(id, attempt)
settle(id, client, status, result)
return 1
