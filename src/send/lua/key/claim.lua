-- Where the lease of an unfinished claim has run out without a mark, nothing was handed over: the key is free again. One that
-- Redis has forgotten is not, while the process that asks holds it. ARGV: hash, token, ms of a lease, of a key's life, and
-- whether the process holds it.
local known = redis.call('HMGET', KEYS[1], 'hash', 'token', 'lease', 'status', 'body', 'begun')
local running = known[1] and not known[4] and tonumber(known[3]) > now
if running and tonumber(known[3]) > now + ARGV[3] then redis.call('HSET', KEYS[1], 'lease', now + ARGV[3]) end -- the clock was set back
if not known[1] and ARGV[5] ~= '' then return {'running'} end
if not known[1] or not (running or known[4] or known[6]) then
  if known[1] then redis.call('DEL', KEYS[1]) end -- a write that a full Redis allows would let the next one pass too
  redis.call('HSET', KEYS[1], 'hash', ARGV[1], 'token', ARGV[2], 'lease', now + ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
  return {'new'}
end
if known[1] ~= '' and ARGV[1] ~= '' and known[1] ~= ARGV[1] then return {'reused'} end
if known[4] then return {'finished', known[4], known[5], known[1]} end
if running then return {'running'} end
return {'lost'}
