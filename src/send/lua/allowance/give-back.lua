-- ARGV: points.
local taken = tonumber(redis.call('GET', KEYS[1]) or 0)
if taken > 0 then redis.call('DECRBY', KEYS[1], math.min(taken, ARGV[1])) end
