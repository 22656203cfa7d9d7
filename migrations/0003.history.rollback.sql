drop function version_json(appointment_versions);
drop function appointment_members(uuid, text, text, tstzrange, timestamptz, timestamptz, integer);
alter table appointment_versions
    drop constraint appointment_versions_received_key,
    add constraint appointment_versions_version_key unique (org_id, appointment_id, version);
drop index appointments_cancelled_idx;
