-- A relay is back: what was put off because none could be reached is due.
free()
for _, id in ipairs(redis.call('ZRANGE', P .. 'away', 0, -1)) do
  local client = redis.call('HGET', P .. 'm:' .. id, 'client')
  if client and redis.call('ZADD', P .. 'd:' .. client, 'XX', 'CH', now, id) == 1 then
    redis.call('HSET', P .. 'm:' .. id, 'due', now)
    place(client, false)
  end
end
redis.call('DEL', P .. 'away')
