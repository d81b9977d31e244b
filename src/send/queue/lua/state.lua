-- ARGV: id. Gives Redis's time, and the state by field and value.
return { tostring(now), unpack(redis.call('HGETALL', P .. 'm:' .. ARGV[1])) }
