-- ARGV: id, client. Gives the status that the message had, or nothing where this client has no such message.
free()
local id, client = unpack(ARGV)
local known = redis.call('HMGET', P .. 'm:' .. id, 'client', 'status')
if known[1] ~= client then return nil end
if known[2] == 'queued' then settle(id, client, 'cancelled', '') end
return known[2]
