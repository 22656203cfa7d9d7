-- depends: 0002.exclusion-by-digest

-- Lists that hold cancelled appointments too need those in the order of the list; the active ones have
-- appointments_start_idx. A write of an active appointment does not touch it.
create index appointments_cancelled_idx on appointments (org_id, lower(during), external_id) where cancelled;

-- What an appointment was at an instant is one step into (appointment, received_at), however many
-- versions there are; a version's number finds only the latest. received_at increases with the version,
-- so it keeps versions apart as well.
alter table appointment_versions
    drop constraint appointment_versions_version_key,
    add constraint appointment_versions_received_key unique (org_id, appointment_id, received_at);

-- The members of an appointment in answers, without braces: lists and versions add theirs.
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
