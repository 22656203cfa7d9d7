-- Waits for an organisation's lock, so that an upsert that follows in the transaction is not busy.
--
-- Parameters:
--   $1 text         organisation
-- Result, always one row:
--   locked              void
-- Lock: the organisation's advisory lock, waited for, held to the end of the transaction.
-- Errors: 57014 if it is not to be had within the statement timeout.
-- Indexes: none.
select pg_advisory_xact_lock(hashtextextended($1::text, 0)) as locked;
