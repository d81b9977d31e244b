-- Gives the number of those that are being sent, and of each client with queued ones: name, number, oldest, next due
-- time.
local clients = {}
for _, client in ipairs(redis.call('ZRANGE', P .. 'ready', 0, -1)) do
  local oldest = redis.call('ZRANGE', P .. 'o:' .. client, 0, 0, 'WITHSCORES')[2] or tostring(now)
  local due = redis.call('ZRANGE', P .. 'd:' .. client, 0, 0, 'WITHSCORES')[2] or tostring(now)
  local at = tostring(math.max(tonumber(due), heldUntil(client)))
  table.insert(clients, { client, redis.call('ZCARD', P .. 'd:' .. client), oldest, at })
end
return { redis.call('ZCARD', P .. 'leases'), clients }
