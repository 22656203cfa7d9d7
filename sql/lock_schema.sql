-- Waits for the schema's lock, so that one process at a time migrates.
--
-- Parameters: none.
-- Result, always one row:
--   locked              void
-- Lock: an advisory lock under a number that is the same in every process, waited for, held to the
--   end of the session.
-- Errors: none of its own.
-- Indexes: none.
select pg_advisory_lock(4926180571) as locked;
