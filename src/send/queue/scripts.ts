import { type Script, script as scriptOf } from '../redis.ts'

/** How long the state of a settled message is kept, and with it the key that it was queued under. */
export const KEPT_MS = 86_400_000
/** A worker that is gone leaves its messages for so long; one that works renews its leases well before. */
export const LEASE_MS = 15_000
/**
 * Where nobody has asked for so long, Redis was away or its clock was set forward: those that work could not renew their leases, and
 * get them anew. So do leases that are too long, because the clock was set back.
 */
const SILENCE_MS = 5_000
/** A message whose workers were lost so often, before any of them handed it over, is not tried again. */
export const MOST_LOST = 10
const MOST_ATTEMPTS = 100

/*
 * What lies in Redis, under `postern:queue:`
 *   m:ID       hash: the state of a message       c:ID      its content, until it is settled
 *   d:CLIENT   its queued messages, by due time   o:CLIENT  its messages that are not settled, by age
 *   ready      clients with queued messages, by when they may be served next: a served client goes behind the others
 *   held       hash: until when a client's rate holds it back
 *   leases     messages that are being sent, by the end of their worker's lease
 *   expiry     queued messages, by when they expire  away   those put off because no relay could be reached
 *   asked      when a worker last asked
 *   turn       counts, so that those of one millisecond stay in order
 * Redis runs a script as one step, and its own clock is the only one that all replicas share.
 */
const COMMON = `
local P = 'postern:queue:'
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local function place(client, served)
  local first = redis.call('ZRANGE', P .. 'd:' .. client, 0, 0, 'WITHSCORES')[2]
  if not first then return redis.call('ZREM', P .. 'ready', client) end
  local known = redis.call('ZSCORE', P .. 'ready', client)
  if known and not served and tonumber(known) < now + 1 then return end
  local held = tonumber(redis.call('HGET', P .. 'held', client) or 0)
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
  if redis.call('HINCRBY', m, 'tries', 1) > ${MOST_ATTEMPTS} then return end
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
  redis.call('PEXPIRE', m, ${KEPT_MS})
  local key = redis.call('HGET', m, 'key')
  if key ~= '' then redis.call('PEXPIRE', key, ${KEPT_MS}) end
  place(client)
end
local function due(id) return tonumber(redis.call('HGET', P .. 'm:' .. id, 'due')) or now end
local function mine(id, token) return redis.call('HGET', P .. 'm:' .. id, 'token') == token end
`

// Past maxmemory Redis refuses to write, except to a script that has begun with a command that may free memory: what is
// known of a message has to be written down also then.
const ALLOWED = `redis.call('DEL', P .. 'nothing')\n`

function script(text: string): Script {
  return scriptOf(COMMON + text)
}

/**
 * Key, content and schedule in one step, for whoever still holds the claim on the key. With a token the message is leased at once.
 * KEYS: the claim. ARGV: its token, id, client, message id, content, due (Unix ms), ms until it expires, token or "", and where nobody
 * knows the key the ms to keep it, or "". Gives due, expires and the ms until it is due, or nothing where the claim is no longer held.
 */
export const ENQUEUE = script(`
local claim, id, client, mid, content, at, ttl, token, keep = unpack(ARGV)
local known = redis.call('HMGET', KEYS[1], 'token', 'status')
if known[1] ~= claim or known[2] then return nil end
local due = math.max(now, tonumber(at))
local expires = due + ttl
redis.call('SET', P .. 'c:' .. id, content)
redis.call('HSET', KEYS[1], 'status', 202, 'body', id)
local key = keep == '' and KEYS[1] or ''
redis.call('PEXPIRE', KEYS[1], keep == '' and expires - now + ${KEPT_MS} or keep)
redis.call('HSET', P .. 'm:' .. id, 'client', client, 'message_id', mid, 'created', now, 'expires', expires, 'key', key)
redis.call('ZADD', P .. 'o:' .. client, now, id)
if token == '' then
  queue(id, client, due, expires)
else
  redis.call('HSET', P .. 'm:' .. id, 'status', 'sending', 'token', token)
  redis.call('ZADD', P .. 'leases', now + ${LEASE_MS}, id)
end
return { tostring(due), tostring(expires), due - now }`)

/**
 * Ends what has ended by itself (leases, lifetimes) and leases messages that are due, a client after the other. ARGV: token, how many,
 * the token of an earlier claim whose answer was lost, or "".
 * Gives [id, client, tries, content] of those that are leased, [id, client, status] of those that ended, and the ms until there is more
 * to do.
 */
export const CLAIM = script(`${ALLOWED}
local token, many, unheard = unpack(ARGV)
local claimed, ended = {}, {}
local asked = tonumber(redis.call('GET', P .. 'asked') or 0)
local silent = now - asked > ${SILENCE_MS}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'leases', silent and '-inf' or now + ${LEASE_MS + 1}, '+inf')) do
  redis.call('ZADD', P .. 'leases', now + ${LEASE_MS}, id)
end
if asked > now then -- the clock was set back: what was due, or came since, is due
  for _, client in ipairs(redis.call('ZRANGE', P .. 'ready', 0, -1)) do
    local d = P .. 'd:' .. client
    local list = redis.call('ZRANGEBYSCORE', d, '(' .. now, asked + ${SILENCE_MS}, 'WITHSCORES')
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
    if lost >= ${MOST_LOST} then
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
  local client = redis.call('ZRANGEBYSCORE', P .. 'ready', '-inf', '(' .. now + 1, 'LIMIT', 0, 1)[1]
  if not client then break end
  local id = redis.call('ZRANGEBYSCORE', P .. 'd:' .. client, '-inf', now, 'LIMIT', 0, 1)[1]
  if id then
    redis.call('ZREM', P .. 'd:' .. client, id)
    redis.call('ZREM', P .. 'expiry', id)
    redis.call('ZREM', P .. 'away', id)
    if redis.call('EXISTS', P .. 'm:' .. id) == 1 then
      redis.call('ZADD', P .. 'leases', now + ${LEASE_MS}, id)
      redis.call('HSET', P .. 'm:' .. id, 'status', 'sending', 'token', token)
      local tries = redis.call('HGET', P .. 'm:' .. id, 'tries') or '0'
      table.insert(claimed, { id, client, tries, redis.call('GET', P .. 'c:' .. id) or '' })
    end
  end
  place(client, true)
end
local wake = now + 60000
for _, set in ipairs({ 'ready', 'expiry', 'leases' }) do
  wake = math.min(wake, tonumber(redis.call('ZRANGE', P .. set, 0, 0, 'WITHSCORES')[2] or wake))
end
return { claimed, ended, math.max(0, math.ceil(wake - now)) }`)

/** Right before the first octet of the content leaves. ARGV: id, token, what the attempt is if nothing more is heard of it. */
export const MARK = script(`${ALLOWED}
local id, token, attempt = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('HSET', P .. 'm:' .. id, 'mark', attempt)
redis.call('ZADD', P .. 'leases', now + ${LEASE_MS}, id)
return 1`)

/** ARGV: ids, each with its token behind it. */
export const RENEW = script(`${ALLOWED}
for i = 1, #ARGV, 2 do
  if mine(ARGV[i], ARGV[i + 1]) then redis.call('ZADD', P .. 'leases', now + ${LEASE_MS}, ARGV[i]) end
end`)

/**
 * Puts a message back that the relay does not have. ARGV: id, client, token, ms until it is due (or "": as it was), attempt or "",
 * problem or "", "away" or "", ms for which its client's rate is used up or "". Gives its status and due time, or nothing where it was
 * no longer leased.
 */
export const RELEASE = script(`${ALLOWED}
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
return { 'queued', tostring(at) }`)

/** ARGV: id, client, token, status, attempt or "", result. */
export const SETTLE = script(`${ALLOWED}
local id, client, token, status, attempt, result = unpack(ARGV)
if not mine(id, token) then return 0 end
note(id, attempt)
settle(id, client, status, result)
return 1`)

/** ARGV: id, client. Gives the status that the message had, or nothing where this client has no such message. */
export const CANCEL = script(`${ALLOWED}
local id, client = unpack(ARGV)
local known = redis.call('HMGET', P .. 'm:' .. id, 'client', 'status')
if known[1] ~= client then return nil end
if known[2] == 'queued' then settle(id, client, 'cancelled', '') end
return known[2]`)

/** A relay is back: what was put off because none could be reached is due. */
export const WAKE = script(`${ALLOWED}
for _, id in ipairs(redis.call('ZRANGE', P .. 'away', 0, -1)) do
  local client = redis.call('HGET', P .. 'm:' .. id, 'client')
  if client and redis.call('ZADD', P .. 'd:' .. client, 'XX', 'CH', now, id) == 1 then
    redis.call('HSET', P .. 'm:' .. id, 'due', now)
    place(client, false)
  end
end
redis.call('DEL', P .. 'away')`)

/** ARGV: id. Gives Redis's time, and the state by field and value. */
export const STATE = script(`return { tostring(now), unpack(redis.call('HGETALL', P .. 'm:' .. ARGV[1])) }`)

/** Gives the number of those that are being sent, and of each client with queued ones: name, number, oldest, next due time. */
export const STATS = script(`
local clients = {}
for _, client in ipairs(redis.call('ZRANGE', P .. 'ready', 0, -1)) do
  local oldest = redis.call('ZRANGE', P .. 'o:' .. client, 0, 0, 'WITHSCORES')[2] or tostring(now)
  local due = redis.call('ZRANGE', P .. 'd:' .. client, 0, 0, 'WITHSCORES')[2] or tostring(now)
  table.insert(clients, { client, redis.call('ZCARD', P .. 'd:' .. client), oldest, due })
end
return { redis.call('ZCARD', P .. 'leases'), clients }`)
