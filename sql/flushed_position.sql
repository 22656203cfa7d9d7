-- How far the primary has flushed its write-ahead log, and which log that is.
--
-- A transaction is visible on the primary only after its commit is flushed (unless synchronous_commit is
-- off, which the service never sets). So a standby that has replayed this position of this log has every
-- change that anybody could see on the primary when the statement began.
--
-- Parameters: none.
-- Result, always one row:
--   cluster             int8         the system identifier, the same on all copies of a cluster
--   database            name
--   timeline            int4         changes when a standby is promoted
--   position            int8         bytes of the log
-- Lock: none.
-- Errors: 55000 on a standby.
-- Indexes: none.
select
    c.system_identifier as cluster,
    current_database() as database,
    ('x' || left(pg_walfile_name(f.flushed), 8))::bit(32)::int4 as timeline,
    (f.flushed - '0/0'::pg_lsn)::int8 as position
from pg_control_system() as c,
    pg_current_wal_flush_lsn() as f (flushed);
