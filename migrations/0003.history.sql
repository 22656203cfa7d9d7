-- depends: 0002.exclusion-by-digest

-- Lists that include cancelled appointments need them in list order; for active ones there is
-- appointments_start_idx. Writing an active appointment does not touch this index.
create index appointments_cancelled_idx on appointments (org_id, lower(during), external_id) where cancelled;

-- The version that was current at an instant is found by one lookup in (appointment, received_at),
-- however many versions there are; a key on the version number cannot do that. received_at strictly
-- increases with the version, so it identifies a version as well.
--
-- No constraint guarantees that versions run 1, 2, 3, ... without a gap. The version is the stored row's
-- plus one, set under the row's lock by the only statement that writes (on conflict do update in
-- sql/upsert_appointment.sql), and a least-privilege role cannot update a recorded version. A unique key
-- on the version would cost about 3 % of the server's CPU time per appointment (0.97 without it, see 0002)
-- and would still not rule out gaps. The tests check the versions after every storm and every history
-- (assert_invariants in tests/databases.py).
alter table appointment_versions
    drop constraint appointment_versions_version_key,
    add constraint appointment_versions_received_key unique (org_id, appointment_id, received_at);

-- The members of an appointment in responses, without the braces: lists and versions add members.
create function appointment_members(
    id uuid,
    org_id text,
    external_id text,
    during tstzrange,
    payload_created_at timestamptz,
    payload_updated_at timestamptz,
    version integer
) returns text
language sql stable parallel safe
return '"id":"' || id
    || '","orgId":' || to_json(org_id)
    || ',"externalId":' || to_json(external_id)
    || ',"start":"' || instant_text(lower(during))
    || '","end":"' || instant_text(upper(during))
    || '","payloadCreatedAt":"' || instant_text(payload_created_at)
    || '","payloadUpdatedAt":"' || instant_text(payload_updated_at)
    || '","version":' || version;

create function version_json(version appointment_versions) returns text
language sql stable parallel safe
return '{' || appointment_members(
        version.appointment_id,
        version.org_id,
        version.external_id,
        version.during,
        version.payload_created_at,
        version.payload_updated_at,
        version.version
    )
    || ',"cancelled":' || version.cancelled
    || ',"receivedAt":"' || instant_text(version.received_at)
    || '"}';
