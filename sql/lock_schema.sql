-- Waits for the schema lock, so that only one process at a time changes the schema.
--
-- Parameters: none.
-- Result, always one row:
--   locked              void
-- Lock: an advisory lock whose key is the same in every process; the statement waits for it, and the
--   session holds it until it ends.
-- Errors: none of its own.
-- Indexes: none.
select pg_advisory_lock(4926180571) as locked;
