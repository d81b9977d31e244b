-- What lies in Redis: `postern:idempotency:CLIENT:KEY`, a hash with what is known of a request with that key
--   hash   of its body, empty while that is not known   token   of the claim on it
--   lease  until when the claim holds                   begun   that the content may have left
--   status, body  its answer
-- Redis runs a script as one step, and its own clock is the only one that all replicas share.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)

-- Past maxmemory Redis refuses writes, except in a script that has begun with a command that may free memory: what is known
-- of a claim that stands is written down also then.
local function make_room() redis.call('DEL', 'postern:nothing') end

