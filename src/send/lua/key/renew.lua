-- ARGV: ms of a lease, and the token of each key.
make_room()
for i, key in ipairs(KEYS) do
  if redis.call('HGET', key, 'token') == ARGV[i + 1] then redis.call('HSET', key, 'lease', now + ARGV[1]) end
end
