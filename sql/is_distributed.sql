-- Decides whether Citus has distributed the tables.
--
-- Citus guards each distributed table by a trigger that refuses a truncate of the local rows alone; it is visible to
-- every role, and the question can be asked of a database without Citus.
--
-- Parameters: none.
-- Result, always one row:
--   distributed         bool
-- Lock: none.
-- Errors: none of its own.
-- Indexes: pg_trigger_tgrelid_tgname_index.
select exists (
    select from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = to_regclass('appointments')
        and p.proname = 'citus_truncate_trigger'
) as distributed;
