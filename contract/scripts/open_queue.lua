#!lua flags=allow-oom
-- A jobs stream that a server has lost is made again, empty.
-- KEYS q
open_queue(KEYS[1])
return 1
