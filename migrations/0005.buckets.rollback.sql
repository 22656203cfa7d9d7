lock table appointments, appointment_versions in access exclusive mode;
drop function version_json(
    uuid, text, text, tstzrange, timestamptz, timestamptz, integer, boolean, timestamptz
);
alter table appointment_versions
    drop constraint appointment_versions_appointment_fkey,
    drop constraint appointment_versions_pkey,
    drop constraint appointment_versions_received_key;
-- With the column go the keys of the appointments that contain it.
alter table appointments
    drop column bucket,
    add constraint appointments_pkey primary key (id),
    add constraint appointments_external_id_key unique (org_id, external_id);
alter table appointment_versions
    drop column bucket,
    alter column sequence_number set generated always,
    add constraint appointment_versions_pkey primary key (org_id, sequence_number),
    add constraint appointment_versions_received_key unique (org_id, appointment_id, received_at),
    add constraint appointment_versions_appointment_fkey
        foreign key (appointment_id) references appointments (id);
drop function organisation_bucket(text);
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
