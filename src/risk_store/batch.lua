-- Executes one batch of one tenant, with the same arithmetic as the engine in process, on integers below
-- 2^53. KEYS: generation, write count of the calling process, then the keys of each part in order. ARGV:
-- generation, now, then the number of operations and the arguments of each part. If the generation is another
-- one, returns only a 0.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return {0, 0, {}, {}, {}} end
local EXACT, LEVEL_MAX, SLACK_MS, WRITES_MS, TIMES_MAX, OVERFULL = 512, 24, 60000, 2678400000, 1024, '!'
local now, key_at, arg_at = tonumber(ARGV[2]), 2, 2
local function key() key_at = key_at + 1; return KEYS[key_at] end
local function text() arg_at = arg_at + 1; return ARGV[arg_at] end
local function number() return tonumber(text()) end
local function milliseconds(micros) return math.ceil(micros / 1000) + SLACK_MS end
local function sampled(item, level) return tonumber(string.sub(item, -6), 16) % 2 ^ level == 0 end

local writes = redis.call('INCR', KEYS[2])
redis.call('PEXPIRE', KEYS[2], WRITES_MS)

for _ = 1, number() do redis.call('UNLINK', key()) end

-- A denied call is taken out of its buckets again.
for _ = 1, number() do
  local bucket, every = key(), number()
  local till = tonumber(redis.call('GET', bucket) or now) - every
  if till > now then
    redis.call('SET', bucket, till, 'PX', milliseconds(till - now))
  else
    redis.call('UNLINK', bucket)
  end
end

local memories = {}
for index = 1, number() do
  local times, live = redis.call('HGETALL', key()), {}
  for at = 1, #times, 2 do
    if tonumber(times[at + 1]) > now then
      live[#live + 1] = times[at]
      live[#live + 1] = times[at + 1]
    end
  end
  memories[index] = live
end

-- A call that finds one bucket full is counted in none: a caller that exceeds its own limit must not consume
-- a limit that it shares with others.
local waits, takes, full = {}, {}, false
local function take(bucket, every, room)
  local till = math.max(tonumber(redis.call('GET', bucket) or now), now) + every
  return till, math.max(till - now - room, 0)
end
for index = 1, number() do
  takes[index] = {key(), number(), number()}
  local _, wait = take(unpack(takes[index]))
  waits[index] = wait
  full = full or wait > 0
end
for index = 1, full and 0 or #takes do
  local till, wait = take(unpack(takes[index]))
  if wait == 0 then redis.call('SET', takes[index][1], till, 'PX', milliseconds(till - now)) end
  waits[index] = wait
end

local counts = {}
for index = 1, number() do
  local things, level_key, item, within, most = key(), key(), text(), number(), number()
  redis.call('ZREMRANGEBYSCORE', things, '-inf', now - within)
  local count = redis.call('ZCARD', things)
  local level = count == 0 and 0 or tonumber(redis.call('GET', level_key) or 0)
  -- A new thing that would exceed the maximum is not added.
  local over = most > 0 and item ~= '' and count * 2 ^ level >= most and not redis.call('ZSCORE', things, item)
  if item ~= '' and not full and not over then
    if sampled(item, level) then redis.call('ZADD', things, 'GT', now, item) end
    count = redis.call('ZCARD', things)
    while count > EXACT and level < LEVEL_MAX do
      level = level + 1
      for _, thing in ipairs(redis.call('ZRANGE', things, 0, -1)) do
        if not sampled(thing, level) then redis.call('ZREM', things, thing) end
      end
      count = redis.call('ZCARD', things)
    end
    redis.call('PEXPIRE', things, milliseconds(within))
    redis.call('SET', level_key, level, 'PX', milliseconds(within))
  end
  counts[index] = count * 2 ^ level + (over and not full and 1 or 0)
end

-- Returns whether a memory has room for another time, besides the slot that marks a full memory. Drops
-- expired times.
local function has_room(memory)
  if redis.call('HLEN', memory) < TIMES_MAX - 1 then return true end
  local times = redis.call('HGETALL', memory)
  for at = 1, #times, 2 do
    if tonumber(times[at + 1]) <= now then redis.call('HDEL', memory, times[at]) end
  end
  return redis.call('HLEN', memory) < TIMES_MAX - 1
end

-- A call that has to wait leaves no trace.
for _ = 1, full and 0 or number() do
  local memory, name, kind, length, reach = key(), text(), text(), number(), number()
  local held = redis.call('HGET', memory, name)
  if not held and not has_room(memory) then
    name = OVERFULL
    held = redis.call('HGET', memory, name)
  end
  local was, till = tonumber(held or now), nil
  if kind == 'add' then
    till = math.max(math.min(math.max(was, now) + length, now + reach), was)
  else
    till = math.max(was, now + length)
  end
  redis.call('HSET', memory, name, till)
  local keep = milliseconds(till - now)
  if redis.call('PEXPIRE', memory, keep, 'NX') == 0 then redis.call('PEXPIRE', memory, keep, 'GT') end
end

return {1, writes, waits, counts, memories}
