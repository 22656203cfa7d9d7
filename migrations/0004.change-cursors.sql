-- depends: 0003.history

-- The cursor of a change: it names the change, not only its number. After a restore from a backup, or an
-- asynchronous fail-over, numbers are used again for other changes; the instant at which a change was accepted
-- and the last bytes of the appointment's id, which are random, then differ. The functions that send a value in
-- binary are the cheapest way to its digits.
create function change_cursor(sequence_number bigint, received_at timestamptz, appointment_id uuid) returns text
language sql stable parallel safe
return sequence_number || '-' || encode(
    timestamptz_send(received_at) || substring(uuid_send(appointment_id) from 13),
    'hex'
);
