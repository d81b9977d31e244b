-- ARGV: ids, each with its token behind it.
free()
for i = 1, #ARGV, 2 do
  if mine(ARGV[i], ARGV[i + 1]) then redis.call('ZADD', P .. 'leases', now + LEASE_MS, ARGV[i]) end
end
