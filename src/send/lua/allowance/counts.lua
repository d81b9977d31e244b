-- Gives of each window the points that were taken, and the ms until it ends.
local counts = {}
for i, key in ipairs(KEYS) do counts[i] = { tonumber(redis.call('GET', key) or 0), redis.call('PTTL', key) } end
return counts
