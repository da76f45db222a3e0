#!lua flags=no-writes
-- The clock of the node that writes the times, which in a cluster is not any node's.
-- KEYS meta
return now_ms()
