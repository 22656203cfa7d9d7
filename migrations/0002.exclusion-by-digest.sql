-- depends: 0001.appointments

-- The exclusion constraint compares a digest of the organisation in place of its name: to GiST a text
-- is dear, a uuid is 16 bytes. Two names with the same first half of a SHA-256 are not to be found, and
-- would only refuse each other's intervals. The cast reads a backslash as an escape, hence the replace.
--
-- CPU of the server for a new appointment over 1,000 organisations, batches of 64 in a pipeline, 2 cores,
-- medians of 5 (PostgreSQL 18) and 3 (15) interleaved runs, 0001's schema = 1.00; runs of one variant
-- differ by 10 %, on 15 by 20 %:
--                                                       18     15
--   no exclusion constraint at all                     0.64   0.57
--   (sha256 as uuid, during), this one                 0.80
--   (a column with that uuid, during)                  0.82   0.81
--   (md5 as uuid, during)                              0.78          collisions can be made
--   (hashtextextended as int8, during)                 0.75   0.78   collisions can be made, or happen
--   (sha256 as a generated column, during)             0.85          its expression is parsed each time
--   (during, org_id)                                   0.99   1.00
--   (org_id, during) with fillfactor 80                1.07   0.94
-- and of the rest:
--   no foreign key of the versions                     0.93   0.89   it guards the history against a hand at the database
--   no check of the interval                           0.93   0.98   an empty range would slip through the constraint
--   no index on the start                              1.12   1.22   the blocker and the list need it
--   no look for a blocker                              0.93   0.89   a conflict would be an error that undoes its batch
--   versions not unique by number                      0.97          a guard, too
--   no primary key of the appointments                 0.97          nor a foreign key, then

alter table appointments
    drop constraint appointments_during_excl,
    add constraint appointments_during_excl exclude using gist (
        (substring(encode(sha256(replace(org_id, '\', '\\')::bytea), 'hex') for 32)::uuid) with =,
        during with &&
    ) where (not cancelled);
