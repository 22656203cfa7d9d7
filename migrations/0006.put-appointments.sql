-- depends: 0005.buckets

-- What sql/upsert_appointment.sql decides, for the organisations of one bucket where the tables are distributed: Citus
-- refuses that statement. sql/put_appointments.sql describes parameters, result and errors. Citus runs a call as one
-- command on the server that holds the bucket, so the locks are where the rows are, and the call is one transaction.
--
-- What Citus demands of the function, each found by a failure:
--   insert ... select ... from unnest: values of arrays by subscript would send the whole array for each of them
--   no join with a table in an insert, and no volatile argument: the call would not be one command
--   nothing but immutable functions in do update, so the select makes the instants
--   search_path and lock_timeout as clauses: no setting of the session reaches the other server
create function put_appointments(
    own_bucket integer,
    org_ids text[],
    external_ids text[],
    starts timestamptz[],
    ends timestamptz[],
    payload_created_ats timestamptz[],
    payload_updated_ats timestamptz[],
    cancelleds boolean[],
    new_ids uuid[],
    in_order boolean
) returns table (
    place bigint,
    verdict text,
    version integer,
    blocker_external_id text,
    blocker_start text,
    blocker_end text
)
language plpgsql volatile
set search_path from current
set lock_timeout = '500ms'
as $$
#variable_conflict use_column
declare
    busy text[];  -- organisations whose locks other sessions hold for long
    clock timestamptz;
    decided record;
    written bigint;
begin
    -- A call that accepts nothing writes nothing, but a standby may be late, and its locks are its own.
    if current_setting('transaction_read_only')::boolean then
        raise exception using
            errcode = 'read_only_sql_transaction',
            message = 'Appointments cannot be written in a read-only transaction.';
    end if;

    -- In the order of the names, so that no two calls wait for each other.
    begin
        perform pg_advisory_xact_lock(hashtextextended(asked.org_id, 0))
        from (select distinct o.org_id from unnest(org_ids) as o (org_id) order by o.org_id) as asked;
    exception when lock_not_available then
        -- The locks acquired before that are given up here, but no other organisation waits any longer.
        select array_agg(asked.org_id)
        into busy
        from (select distinct o.org_id from unnest(org_ids) as o (org_id)) as asked
        where not pg_try_advisory_xact_lock(hashtextextended(asked.org_id, 0));
    end;

    -- From here on, each statement sees what was committed under the locks before.
    clock := clock_timestamp();
    select
        array_agg(d.verdict order by d.place) as verdicts,
        array_agg(d.id order by d.place) as ids,
        array_agg(d.version order by d.place) as versions,
        array_agg(d.received_at order by d.place) as received_ats,
        array_agg(d.sequence_number order by d.place) as sequence_numbers,
        array_agg(d.blocker_external_id order by d.place) as blocker_external_ids,
        array_agg(d.blocker_during order by d.place) as blocker_durings,
        count(*) filter (where d.verdict = 'ok') as accepted
    into decided
    from (
        select
            ordered.*,
            ordered.last_number
            + count(*) filter (where ordered.verdict = 'ok') over (partition by ordered.org_id order by ordered.place)
                as sequence_number
        from (
            select
                waiting.place,
                waiting.org_id,
                -- The rest of an organisation waits with the first one, so that it does not overtake it.
                case
                    when bool_or(waiting.waits) over (partition by waiting.org_id order by waiting.place) then 'later'
                    else waiting.verdict
                end as verdict,
                waiting.id,
                waiting.version,
                waiting.received_at,
                waiting.last_number,
                waiting.blocker_external_id,
                waiting.blocker_during
            from (
                select
                    judged.*,
                    -- An update before it may have freed the time. A creation frees none, and without a conflict it
                    -- does not matter.
                    in_order
                    and judged.verdict = 'conflict'
                    and bool_or(judged.verdict = 'ok' and judged.version > 1)
                        over (partition by judged.org_id order by judged.place) as waits
                from (
                    select
                        p.place,
                        p.org_id,
                        case
                            when p.org_id = any (busy) then 'busy'
                            when held.payload_updated_at >= p.payload_updated_at then 'stale'
                            when blocker.external_id is not null then 'conflict'
                            else 'ok'
                        end as verdict,
                        coalesce(held.id, p.id) as id,
                        coalesce(held.version, 0) + 1 as version,
                        greatest(clock, held.received_at + interval '1 microsecond') as received_at,
                        coalesce(last_change.sequence_number, 0) as last_number,
                        blocker.external_id as blocker_external_id,
                        blocker.during as blocker_during
                    from unnest(
                        org_ids, external_ids, starts, ends, payload_updated_ats, cancelleds, new_ids
                    ) with ordinality as p (
                        org_id, external_id, starts_at, ends_at, payload_updated_at, cancelled, id, place
                    )
                    -- A limit, so that each is looked up by the index: a join would read all rows of the bucket for
                    -- each element while PostgreSQL has no statistics, and takes few rows to be in a bucket.
                    left join lateral (
                        select a.id, a.payload_updated_at, a.received_at, a.version
                        from appointments as a
                        where a.bucket = own_bucket
                            and a.org_id = p.org_id
                            and a.external_id = p.external_id
                        limit 1
                    ) as held on true
                    left join lateral (
                        select v.sequence_number
                        from appointment_versions as v
                        where v.bucket = own_bucket
                            and v.org_id = p.org_id
                        order by v.sequence_number desc
                        limit 1
                    ) as last_change on true
                    -- The last active one that starts before our end, as in sql/upsert_appointment.sql.
                    left join lateral (
                        select n.external_id, n.during
                        from appointments as n
                        where not p.cancelled
                            and n.bucket = own_bucket
                            and n.org_id = p.org_id
                            and not n.cancelled
                            and lower(n.during) < p.ends_at
                            and n.external_id <> p.external_id
                        order by lower(n.during) desc
                        limit 1
                    ) as blocker on upper(blocker.during) > p.starts_at
                ) as judged
            ) as waiting
        ) as ordered
    ) as d;

    if decided.accepted > 0 then
        insert into appointments as held (
            bucket,
            id,
            org_id,
            external_id,
            during,
            payload_created_at,
            payload_updated_at,
            received_at,
            version,
            cancelled
        )
        select
            own_bucket,
            p.id,
            p.org_id,
            p.external_id,
            tstzrange(p.starts_at, p.ends_at),
            p.payload_created_at,
            p.payload_updated_at,
            p.received_at,
            p.version,
            p.cancelled
        from unnest(
            org_ids,
            external_ids,
            starts,
            ends,
            payload_created_ats,
            payload_updated_ats,
            cancelleds,
            decided.ids,
            decided.received_ats,
            decided.versions,
            decided.verdicts
        ) as p (
            org_id,
            external_id,
            starts_at,
            ends_at,
            payload_created_at,
            payload_updated_at,
            cancelled,
            id,
            received_at,
            version,
            verdict
        )
        where p.verdict = 'ok'
        on conflict (org_id, external_id, bucket) do update set
            during = excluded.during,
            payload_created_at = excluded.payload_created_at,
            payload_updated_at = excluded.payload_updated_at,
            received_at = excluded.received_at,
            version = excluded.version,
            cancelled = excluded.cancelled
        where held.version = excluded.version - 1;
        get diagnostics written = row_count;
        if written <> decided.accepted then
            raise exception using
                errcode = 'serialization_failure',
                message = 'An appointment was written without its organisation''s lock.';
        end if;

        insert into appointment_versions (
            bucket,
            sequence_number,
            appointment_id,
            org_id,
            external_id,
            during,
            payload_created_at,
            payload_updated_at,
            received_at,
            version,
            cancelled
        )
        select
            own_bucket,
            p.sequence_number,
            p.id,
            p.org_id,
            p.external_id,
            tstzrange(p.starts_at, p.ends_at),
            p.payload_created_at,
            p.payload_updated_at,
            p.received_at,
            p.version,
            p.cancelled
        from unnest(
            org_ids,
            external_ids,
            starts,
            ends,
            payload_created_ats,
            payload_updated_ats,
            cancelleds,
            decided.ids,
            decided.received_ats,
            decided.versions,
            decided.sequence_numbers,
            decided.verdicts
        ) as p (
            org_id,
            external_id,
            starts_at,
            ends_at,
            payload_created_at,
            payload_updated_at,
            cancelled,
            id,
            received_at,
            version,
            sequence_number,
            verdict
        )
        where p.verdict = 'ok';
    end if;

    return query
    select
        r.place,
        r.verdict,
        case when r.verdict = 'ok' then r.version end,
        r.blocker_external_id,
        instant_text(lower(r.blocker_during)),
        instant_text(upper(r.blocker_during))
    from unnest(
        decided.verdicts, decided.versions, decided.blocker_external_ids, decided.blocker_durings
    ) with ordinality as r (verdict, version, blocker_external_id, blocker_during, place);
end
$$;
