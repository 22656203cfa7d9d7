-- Whether a transaction of this session could write, and the timeline of the server's log.
--
-- Parameters: none.
-- Result, always one row:
--   accepts_writes      bool         not on a standby, nor where the server or the role is read-only
--   timeline            int4         grows with each promotion; 0 on a standby
-- Lock: none.
-- Errors: none of its own.
-- Indexes: none.
select
    current_setting('transaction_read_only') = 'off' as accepts_writes,
    case
        when pg_is_in_recovery() then 0
        else ('x' || left(pg_walfile_name(pg_current_wal_flush_lsn()), 8))::bit(32)::int4
    end as timeline;
