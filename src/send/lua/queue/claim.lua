-- Ends what has ended by itself (leases, lifetimes) and leases messages that are due, a client after the other. ARGV:
-- token, how many, the token of an earlier claim whose answer was lost, or "", the most of a client, and of each client
-- how many it has. Gives [id, client, tries, content] of those that are leased, [id, client, status] of those that ended,
-- how many clients were passed over, and the ms until there is more to do.
free()
local token, many, unheard, share = unpack(ARGV)
local claimed, ended = {}, {}
local has, passed = {}, 0
for i = 5, #ARGV, 2 do has[ARGV[i]] = tonumber(ARGV[i + 1]) end
local asked = tonumber(redis.call('GET', P .. 'asked') or 0)
local silent = now - asked > SILENCE_MS
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', silent and '-inf' or now + LEASE_MS + 1, '+inf')) do
  redis.call('ZADD', P .. 'leases', now + LEASE_MS, id)
end
if asked > now then -- the clock was set back: what was due, or came since, is due
  for _, client in ipairs(redis.call('ZRANGE', P .. 'ready', 0, -1)) do
    local d = P .. 'd:' .. client
    local list = redis.call('ZRANGEBYSCORE', d, '(' .. now, asked + SILENCE_MS, 'WITHSCORES')
    for i = 1, #list, 2 do redis.call('ZADD', d, list[i + 1] - asked + now, list[i]) end
    redis.call('HDEL', P .. 'held', client)
    place(client, true)
  end
end
redis.call('SET', P .. 'asked', now)
if unheard ~= '' then
  for _, id in ipairs(redis.call('ZRANGE', P .. 'leases', 0, -1)) do
    if mine(id, unheard) then
      local client, expires = unpack(redis.call('HMGET', P .. 'm:' .. id, 'client', 'expires'))
      redis.call('ZREM', P .. 'leases', id)
      queue(id, client, due(id), expires)
    end
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, 100)) do
  local client, mark, expires = unpack(redis.call('HMGET', P .. 'm:' .. id, 'client', 'mark', 'expires'))
  redis.call('ZREM', P .. 'leases', id)
  if mark then
    note(id, mark)
    settle(id, client, 'unknown', '')
    table.insert(ended, { id, client, 'unknown' })
  elseif client then
    local lost = redis.call('HINCRBY', P .. 'm:' .. id, 'lost', 1)
    if lost >= MOST_LOST then
      settle(id, client, 'cancelled', 'lost')
      table.insert(ended, { id, client, 'cancelled' })
    else
      queue(id, client, lost < 3 and due(id) or math.floor(now + 60000 * lost * (0.5 + math.random())), expires)
      table.insert(ended, { id, client, 'queued' })
    end
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'expiry', '-inf', now, 'LIMIT', 0, 100)) do
  local client, last = unpack(redis.call('HMGET', P .. 'm:' .. id, 'client', 'last'))
  redis.call('ZREM', P .. 'expiry', id)
  if client then
    settle(id, client, 'expired', last or '')
    table.insert(ended, { id, client, 'expired' })
  end
end
while #claimed < tonumber(many) do
  local client = redis.call('ZRANGEBYSCORE', P .. 'ready', '-inf', '(' .. now + 1, 'LIMIT', passed, 1)[1]
  if not client then break end
  local full = (has[client] or 0) >= tonumber(share)
  local id = redis.call('ZRANGEBYSCORE', P .. 'd:' .. client, '-inf', now, 'LIMIT', 0, 1)[1]
  if full then
    passed = passed + 1
  elseif id then
    has[client] = (has[client] or 0) + 1
    redis.call('ZREM', P .. 'd:' .. client, id)
    redis.call('ZREM', P .. 'expiry', id)
    redis.call('ZREM', P .. 'away', id)
    if redis.call('EXISTS', P .. 'm:' .. id) == 1 then
      redis.call('ZADD', P .. 'leases', now + LEASE_MS, id)
      redis.call('HSET', P .. 'm:' .. id, 'status', 'sending', 'token', token)
      local tries = redis.call('HGET', P .. 'm:' .. id, 'tries') or '0'
      table.insert(claimed, { id, client, tries, redis.call('GET', P .. 'c:' .. id) or '' })
    end
  end
  if not full then place(client, true) end
end
local wake = now + 60000
for _, set in ipairs({ 'ready', 'expiry', 'leases' }) do
  wake = math.min(wake, tonumber(redis.call('ZRANGE', P .. set, 0, 0, 'WITHSCORES')[2] or wake))
end
return { claimed, ended, passed, math.max(0, math.ceil(wake - now)) }
