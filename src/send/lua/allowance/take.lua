-- KEYS: windows that points are taken from, of all of them or of none. ARGV: of each the points, its limit and its length in
-- seconds. Gives which one has no room, from 1 on, and the ms until it ends; or 0 and those of the last.
local ms = 0
for i, key in ipairs(KEYS) do
  local points, limit, seconds = unpack(ARGV, i * 3 - 2, i * 3)
  ms = redis.call('PTTL', key)
  if ms < 0 then ms = seconds * 1000 end
  if points + (redis.call('GET', key) or 0) > tonumber(limit) then return { i, ms } end
end
for i, key in ipairs(KEYS) do
  redis.call('INCRBY', key, ARGV[i * 3 - 2])
  if redis.call('PTTL', key) < 0 then redis.call('EXPIRE', key, ARGV[i * 3]) end
end
return { 0, ms }
