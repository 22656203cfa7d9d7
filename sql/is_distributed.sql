-- Whether Citus has distributed the tables.
--
-- Parameters: none.
-- Result, always one row:
--   distributed         bool
-- Lock: none.
-- Errors: none of its own.
-- Indexes: none.
--
-- Citus' own catalogue cannot be read without Citus, but this trigger of a distributed table is in PostgreSQL's.
select exists (
    select
    from pg_trigger as t
    join pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = to_regclass('appointments')
        and p.proname = 'citus_truncate_trigger'
) as distributed;
