-- ARGV: id. Gives Redis's time, until when its client's rate holds it back, and the state by field and value.
local m = P .. 'm:' .. ARGV[1]
return { tostring(now), tostring(heldUntil(redis.call('HGET', m, 'client') or '')), unpack(redis.call('HGETALL', m)) }
