-- KEYS: generation. ARGV: the generation to be set, or nothing to look. Answers whether the server evicts keys, and the generation.
local policy = string.match(redis.call('INFO', 'memory'), 'maxmemory_policy:([%w-]+)')
local evicts = policy == 'noeviction' and 0 or 1
if ARGV[1] ~= '' and evicts == 0 then redis.call('SET', KEYS[1], ARGV[1]) end
return {evicts, redis.call('GET', KEYS[1])}
