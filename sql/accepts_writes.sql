-- Whether a transaction of this session could write: not on a standby, nor where the server or the role is read-only.
--
-- Parameters: none.
-- Result, always one row:
--   accepts_writes      bool
-- Lock: none.
-- Errors: none of its own.
-- Indexes: none.
select current_setting('transaction_read_only') = 'off' as accepts_writes;
