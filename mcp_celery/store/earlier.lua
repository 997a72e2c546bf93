-- The task that an earlier request with the same idempotency key has created.
--
-- KEYS[1]  hash: the task of an idempotency key
-- ARGV[1]  digest of what the request says
-- ARGV[2]  what the keys of the owner's records begin with
-- ARGV[3]  the id that the request's own task would have
-- ARGV[4]  1 where its job may be published a second time, else 0
-- Returns  nil: there is none; else {its id, 1 if both requests say the same else 0, where its first job is: 'published',
--          'publishing', or 'unpublished' where this request has to publish it}.
return earlier_task(KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4] == '1')
