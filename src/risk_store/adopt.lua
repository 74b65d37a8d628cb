-- KEYS: generation, then the write counts of processes. ARGV: the generation to set, or '' to only query; the
-- generation that must be there for that, or ''. Returns whether the server evicts keys, its time in
-- microseconds, the generation, and each process's write count.
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
local evicts = policy == 'noeviction' and 0 or 1
if ARGV[1] ~= '' and evicts == 0 and (redis.call('GET', KEYS[1]) or '') == ARGV[2] then redis.call('SET', KEYS[1], ARGV[1]) end
local time, counts = redis.call('TIME'), {}
for index = 2, #KEYS do counts[index - 1] = tonumber(redis.call('GET', KEYS[index]) or 0) end
return {evicts, time[1] * 1000000 + time[2], redis.call('GET', KEYS[1]), counts}
