-- KEYS: generation. ARGV: the generation to be set, or nothing to look. Answers whether the server evicts keys, and the generation.
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
local evicts = 0
if policy and policy ~= 'noeviction' then evicts = 1 end
if ARGV[1] ~= '' and evicts == 0 then redis.call('SET', KEYS[1], ARGV[1]) end
return {evicts, redis.call('GET', KEYS[1])}
