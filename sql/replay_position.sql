-- How far a standby has replayed the write-ahead log of its primary, and which log that is.
--
-- now() - pg_last_xact_replay_timestamp() grows while nothing is written, and a standby that is cut off
-- from its primary looks like one that has nothing to replay; so only the position counts, compared with
-- the primary's.
--
-- The timeline is that of the control file. After a promotion elsewhere it follows the log at the next
-- restartpoint; any other source needs the privileges of pg_read_all_stats. It is never ahead of the log.
--
-- Parameters: none.
-- Result, always one row:
--   cluster             int8         the system identifier, the same on all copies of a cluster
--   database            name
--   timeline            int4         0: not a standby
--   position            int8         bytes of the log; null: not a standby
-- Lock: none.
-- Errors: none of its own.
-- Indexes: none.
select
    c.system_identifier as cluster,
    current_database() as database,
    case when pg_is_in_recovery() then r.min_recovery_end_timeline else 0 end as timeline,
    case when pg_is_in_recovery() then (pg_last_wal_replay_lsn() - '0/0'::pg_lsn)::int8 end as position
from pg_control_system() as c,
    pg_control_recovery() as r;
