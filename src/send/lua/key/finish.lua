-- A key that is gone has been forgotten, by a server that was restarted: its answer is known all the same. ARGV: token, status,
-- body, hash where the claim had none, ms of a key's life.
make_room()
local token = redis.call('HGET', KEYS[1], 'token')
if token and token ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'status', ARGV[2], 'body', ARGV[3])
if not token or ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'hash', ARGV[4]) end
if not token then redis.call('PEXPIRE', KEYS[1], ARGV[5]) end
return 1
