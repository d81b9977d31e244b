-- Key, content and schedule in one step, for whoever still holds the claim on the key. With a token the message is
-- leased at once, where it is due and no other is. KEYS: the claim. ARGV: its token, id, client, message id, content, due
-- (Unix ms), ms until it expires, token or "", and where nobody knows the key the ms to keep it, or "". Gives when it is
-- tried, when it expires, the ms until it is tried and 1 where it is leased, or nothing where the claim is no longer held.
local claim, id, client, mid, content, at, ttl, token, keep = unpack(ARGV)
local known = redis.call('HMGET', KEYS[1], 'token', 'status')
if known[1] ~= claim or known[2] then return nil end
local due = math.max(now, tonumber(at))
local expires = due + ttl
redis.call('SET', P .. 'c:' .. id, content)
redis.call('HSET', KEYS[1], 'status', 202, 'body', id)
local key = keep == '' and KEYS[1] or ''
redis.call('PEXPIRE', KEYS[1], keep == '' and expires - now + KEPT_MS or keep)
redis.call('HSET', P .. 'm:' .. id, 'client', client, 'message_id', mid, 'created', now, 'expires', expires, 'key', key)
redis.call('ZADD', P .. 'o:' .. client, now, id)
local first = math.max(due, heldUntil(client))
local next = tonumber(redis.call('ZRANGE', P .. 'ready', 0, 0, 'WITHSCORES')[2]) or now + 1
local leased = token ~= '' and first <= now and next >= now + 1
if leased then
  redis.call('HSET', P .. 'm:' .. id, 'status', 'sending', 'token', token)
  redis.call('ZADD', P .. 'leases', now + LEASE_MS, id)
else
  queue(id, client, due, expires)
end
return { tostring(first), tostring(expires), first - now, leased and 1 or 0 }
