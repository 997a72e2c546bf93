-- Note a message as delivered, and take more messages and note them, in the form of kombu's Redis transport: a worker on
-- kombu's own transport restores what a worker leaves behind that died with them.
--
-- KEYS[1]  sorted set: delivery tags of messages that are not acknowledged, by since when
-- KEYS[2]  hash: these messages, by delivery tag
-- KEYS[3…] lists: queues in the order in which they are looked at, once for each priority, the most urgent first
-- ARGV[1]  now, in seconds since the epoch
-- ARGV[2]  delivery tag of the message that BRPOP has taken
-- ARGV[3]  what is noted of it
-- ARGV[4]  how many messages to take besides
-- ARGV[5]  how many lists there are of each priority
-- ARGV[6]  1: one message of each queue in turn; 0: of a queue only when the one before is empty
-- Returns  for each message taken: the number of its list (0: the first), the message, its delivery tag. The tag is ''
--          for a message that is not noted, as it is none of Celery's, or its tag cannot be read here.
local function note(tag, noted)
  redis.call('ZADD', KEYS[1], ARGV[1], tag)
  redis.call('HSET', KEYS[2], tag, noted)
end

-- The delivery tag of a message, and what kombu notes of it: a JSON list of message, exchange and routing key.
local function described(message)
  local is_json, decoded = pcall(cjson.decode, message)
  local properties = is_json and type(decoded) == 'table' and decoded.properties
  local delivery = type(properties) == 'table' and properties.delivery_info
  if type(delivery) ~= 'table' or type(properties.delivery_tag) ~= 'string' or properties.delivery_tag == ''
    or type(delivery.exchange) ~= 'string'
    or type(delivery.routing_key) ~= 'string' then
    return ''
  end
  return properties.delivery_tag, table.concat({'[', message, ', ', cjson.encode(delivery.exchange), ', ',
    cjson.encode(delivery.routing_key), ']'})
end

local taken = {}
local left = tonumber(ARGV[4])

-- Whether there was a message to take. A key that is no list, or that this user may not use, has none.
local function take(list)
  if left == 0 then
    return false
  end
  local message = redis.pcall('RPOP', KEYS[list])
  if type(message) ~= 'string' then
    return false
  end
  local tag, noted = described(message)
  if noted then
    note(tag, noted)
  end
  for _, value in ipairs({list - 3, message, tag}) do
    taken[#taken + 1] = value
  end
  left = left - 1
  return true
end

note(ARGV[2], ARGV[3]) -- before any other is taken: a script that may not write ends here, and has taken none
local lists = tonumber(ARGV[5])
for first = 3, #KEYS, lists do
  local is_any = true
  while is_any do
    is_any = false
    for list = first, first + lists - 1 do
      local was_there = take(list)
      while was_there and ARGV[6] == '0' do
        was_there = take(list)
      end
      is_any = is_any or was_there
    end
  end
end
return taken
