-- Right before the first octet of the content leaves. ARGV: token, ms of a lease.
make_room()
if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'begun', 1, 'lease', now + ARGV[2])
return 1
