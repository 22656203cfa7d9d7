-- Builds the statements that have Citus distribute the tables and functions.
--
-- Run all of them in one transaction, so that an interrupted run changes nothing. Citus then needs its sequential mode:
-- it distributes no function beside the parallel connections over which it copies rows (2.1 s instead of 1.5 s for
-- 100,000 appointments). Functions are distributed again every time: it costs a few milliseconds, and a migration may
-- have replaced one. The tables are left alone if they are distributed already.
--
-- Functions are listed, since Citus copies only those that a table's definition uses, or that were created after its
-- extension. The shards are 16, one for each bucket (migrations/0005.buckets.sql).
--
-- The exclusion constraint has to contain the bucket, so a check has to guarantee that it is the right one: in another
-- bucket, an appointment could overlap unnoticed.
--
-- The identity, which numbers no change any more (migrations/0005.buckets.sql), is moved far beyond the numbers that
-- follow. In a dump that is restored without Citus, it then continues above the last change of each organisation.
--
-- Parameters: none.
-- Result, one row per statement, in the order in which to run them:
--   step                text, for the progress bar
--   statement           text
-- Lock: none. The statements lock both tables before they change anything, in the order in which writes and lists
--   do: the other way round, such a session and the run would each hold the table for which the other waits.
-- Errors: none of its own.
-- Indexes: pg_trigger_tgrelid_tgname_index, pg_proc_proname_args_nsp_index.
select
    s.step as step,
    s.statement as statement
from (
    select
        1 as place,
        'mode' as step,
        'select set_config(''citus.multi_shard_modify_mode'', ''sequential'', true)' as statement
    union all
    select
        1 + t.place,
        t.step,
        format(t.statement, to_regclass(t.name))
    from (
        values
            (0, 'locks', 'appointments', 'lock table %s, appointment_versions in access exclusive mode'),
            (
                1,
                'keys',
                'appointments',
                'alter table %s add constraint appointments_bucket_check check (bucket = organisation_bucket(org_id))'
            ),
            (2, 'keys', 'appointments', 'alter table %s drop constraint appointments_during_excl'),
            (
                3,
                'keys',
                'appointments',
                'alter table %s add constraint appointments_during_excl exclude using gist ('
                '(substring(encode(sha256(replace(org_id, ''\'', ''\\'')::bytea), ''hex'') for 32)::uuid) with =,'
                ' during with &&, bucket with =) where (not cancelled)'
            ),
            (
                4,
                'numbers',
                'appointment_versions',
                'select setval(s.name, nextval(s.name) + 1000000000000)'
                ' from pg_get_serial_sequence(''%s'', ''sequence_number'') as s (name)'
            ),
            (
                5,
                'appointments',
                'appointments',
                'select create_distributed_table(''%s'', ''bucket'', colocate_with => ''none'', shard_count => 16)'
            ),
            (
                6,
                'appointment_versions',
                'appointment_versions',
                'select create_distributed_table(''%s'', ''bucket'', colocate_with => ''appointments'')'
            )
    ) as t (place, step, name, statement)
    where not exists (
        select from pg_trigger as g
        join pg_proc as p on p.oid = g.tgfoid
        where g.tgrelid = to_regclass(t.name)
            and p.proname = 'citus_truncate_trigger'
    )
    union all
    select
        8,
        'functions',
        format(
            case p.proname
                when 'put_appointments' then
                    'select create_distributed_function(%L, ''own_bucket'', ''appointments'', true)'
                else 'select create_distributed_function(%L)'
            end,
            p.oid::regprocedure
        )
    from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    where n.nspname = current_schema()
        and p.proname in (
            'appointment_members', 'change_cursor', 'instant_text', 'organisation_bucket', 'put_appointments',
            'version_json'
        )
    union all
    select
        9,
        'local copies',
        -- With their versions, which refer to them. Without local rows it does nothing.
        'select truncate_local_data_after_distributing_table(''appointments'')'
) as s
order by s.place;
