-- What lies in Redis, under `postern:queue:`
--   m:ID       hash: the state of a message       c:ID      its content, until it is settled
--   d:CLIENT   its queued messages, by due time   o:CLIENT  its messages that are not settled, by age
--   ready      clients with queued messages, by when they may be served next: a served client goes behind the others
--   held       hash: until when a client's rate holds it back
--   leases     messages that are being sent, by the end of their worker's lease
--   expiry     queued messages, by when they expire  away   those put off because no relay could be reached
--   asked      when a worker last asked
--   turn       counts, so that those of one millisecond stay in order
-- Redis runs a script as one step, and its own clock is the only one that all replicas share.

-- How long the state of a settled message is kept, and with it the key that it was queued under.
local KEPT_MS = 86400000
-- A worker that is gone leaves its messages for so long; one that works renews its leases well before.
local LEASE_MS = 15000
-- Where nobody has asked for so long, Redis was away or its clock was set forward: those that work could not renew their
-- leases, and get them anew. So do leases that are too long, because the clock was set back.
local SILENCE_MS = 5000
-- A message whose workers were lost so often, before any of them handed it over, is not tried again.
local MOST_LOST = 10
local MOST_ATTEMPTS = 100

local P = 'postern:queue:'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

-- Past maxmemory Redis refuses to write, except to a script that has begun with a command that may free memory: what is
-- known of a message has to be written down also then.
local function free() redis.call('DEL', P .. 'nothing') end

local function heldUntil(client) return tonumber(redis.call('HGET', P .. 'held', client) or 0) end

local function place(client, served)
  local first = redis.call('ZRANGE', P .. 'd:' .. client, 0, 0, 'WITHSCORES')[2]
  if not first then return redis.call('ZREM', P .. 'ready', client) end
  local known = redis.call('ZSCORE', P .. 'ready', client)
  if known and not served and tonumber(known) < now + 1 then return end
  local held = heldUntil(client)
  if held > 0 and held <= now then redis.call('HDEL', P .. 'held', client) end
  local turn = now + redis.call('INCR', P .. 'turn') % 1000 / 1000
  redis.call('ZADD', P .. 'ready', math.max(tonumber(first), held, turn), client)
end

local function queue(id, client, due, expires)
  redis.call('ZADD', P .. 'd:' .. client, due, id)
  redis.call('ZADD', P .. 'expiry', expires, id)
  redis.call('HDEL', P .. 'm:' .. id, 'token', 'mark')
  redis.call('HSET', P .. 'm:' .. id, 'status', 'queued', 'due', due)
  place(client)
end

local function note(id, attempt)
  if attempt == '' then return end
  local m = P .. 'm:' .. id
  if redis.call('HINCRBY', m, 'tries', 1) > MOST_ATTEMPTS then return end
  local before = redis.call('HGET', m, 'attempts')
  redis.call('HSET', m, 'attempts', before and before .. ',' .. attempt or attempt)
end

local function settle(id, client, status, result)
  local m = P .. 'm:' .. id
  redis.call('DEL', P .. 'c:' .. id)
  for _, set in ipairs({ 'd:' .. client, 'o:' .. client, 'leases', 'expiry', 'away' }) do
    redis.call('ZREM', P .. set, id)
  end
  redis.call('HDEL', m, 'token', 'mark', 'due')
  redis.call('HSET', m, 'status', status, 'result', result)
  redis.call('PEXPIRE', m, KEPT_MS)
  local key = redis.call('HGET', m, 'key')
  if key ~= '' then redis.call('PEXPIRE', key, KEPT_MS) end
  place(client)
end

local function due(id) return tonumber(redis.call('HGET', P .. 'm:' .. id, 'due')) or now end
local function mine(id, token) return redis.call('HGET', P .. 'm:' .. id, 'token') == token end
