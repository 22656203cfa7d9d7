alter table appointments
    drop constraint appointments_during_excl,
    add constraint appointments_during_excl exclude using gist (
        org_id with =,
        during with &&
    ) where (not cancelled);
