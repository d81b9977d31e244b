-- Puts a message back that the relay does not have. ARGV: id, client, token, ms until it is due (or "": as it was),
-- attempt or "", problem or "", "away" or "", ms for which its client's rate is used up or "". Gives its status and due
-- time, or nothing where it was no longer leased.
free()
local id, client, token, delay, attempt, problem, away, held = unpack(ARGV)
local m = P .. 'm:' .. id
if not mine(id, token) then return nil end
redis.call('ZREM', P .. 'leases', id)
note(id, attempt)
if problem ~= '' then redis.call('HSET', m, 'last', problem) end
local expires = tonumber(redis.call('HGET', m, 'expires'))
if expires <= now then
  settle(id, client, 'expired', redis.call('HGET', m, 'last') or '')
  return { 'expired', '0' }
end
local at = delay == '' and due(id) or math.floor(now + delay)
if away ~= '' then redis.call('ZADD', P .. 'away', at, id) end
if held ~= '' then redis.call('HSET', P .. 'held', client, math.ceil(now + held)) end
queue(id, client, at, expires)
if held ~= '' then place(client, true) end
return { 'queued', tostring(at) }
