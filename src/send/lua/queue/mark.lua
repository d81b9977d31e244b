-- Right before the first octet of the content leaves. ARGV: id, token, what the attempt is if nothing more is heard of
-- it.
free()
local id, token, attempt = unpack(ARGV)
if not mine(id, token) then return 0 end
redis.call('HSET', P .. 'm:' .. id, 'mark', attempt)
redis.call('ZADD', P .. 'leases', now + LEASE_MS, id)
return 1
