drop function instant_text(timestamptz);
drop table appointment_versions;
drop table appointments;
