-- Acknowledge messages, in the form of kombu's Redis transport.
--
-- KEYS[1]  sorted set: delivery tags of messages that are not acknowledged, by since when
-- KEYS[2]  hash: these messages, by delivery tag
-- ARGV     delivery tags
redis.call('ZREM', KEYS[1], unpack(ARGV))
redis.call('HDEL', KEYS[2], unpack(ARGV))
