-- Builds the statements that grant a role what it needs beyond sql/grants.sql where Citus has distributed the tables.
--
-- There put_appointments finds the number of a change itself; elsewhere PostgreSQL draws it.
--
-- Parameters:
--   $1 text           the role
-- Result, one row per statement; none where the tables are not distributed:
--   statement           text
-- Lock: none.
-- Errors: none of its own.
-- Indexes: pg_trigger_tgrelid_tgname_index.
select format('grant insert (sequence_number) on appointment_versions to %I', $1::text) as statement
from pg_trigger as t
join pg_proc as p on p.oid = t.tgfoid
where t.tgrelid = to_regclass('appointment_versions')
    and p.proname = 'citus_truncate_trigger';
