-- Inserts appointments with their versions, spread over organisations: ten minutes each, back to back,
-- before the year 2000. The rows are ordered by organisation, which makes the GiST index cheaper to build.
--
-- Parameters: %(rows)s, the number of appointments; %(organisations)s; %(prefix)s, of the organisations'
-- names; %(versions)s, per appointment.
with numbered as (
    select
        n,
        gen_random_uuid() as id,
        %(prefix)s || n / (%(rows)s / %(organisations)s) as org_id,
        timestamptz '1999-12-31' - n %% (%(rows)s / %(organisations)s) * interval '10 minutes' as start
    from generate_series(0, %(rows)s - 1) as n
),
filled as (
    insert into appointments
        (bucket, id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
    select
        organisation_bucket(org_id),
        id,
        org_id,
        'filled-' || n,
        tstzrange(start, start + interval '10 minutes'),
        start,
        start + %(versions)s * interval '1 second',
        timestamptz '2000-01-01' + %(versions)s * interval '1 second',
        %(versions)s
    from numbered
    returning *
)
insert into appointment_versions
    (bucket, appointment_id, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version, cancelled)
select
    bucket,
    id,
    org_id,
    external_id,
    during,
    payload_created_at,
    payload_created_at + number * interval '1 second',
    timestamptz '2000-01-01' + number * interval '1 second',
    number,
    cancelled
from generate_series(1, %(versions)s) as number
cross join filled
order by number;
