-- depends: 0001.appointments

-- The exclusion constraint compares a digest of the organisation instead of its name, because text keys
-- are expensive in a GiST index and a uuid has 16 bytes. Finding two names whose SHA-256 digests share
-- their first half is infeasible, and such a pair would only refuse each other's intervals. The cast to
-- bytea treats a backslash as an escape, hence the replace.
--
-- CPU time of the server per new appointment over 1,000 organisations, pipelined batches of 64, 2 cores,
-- medians of 5 (PostgreSQL 18) and 3 (15) interleaved runs, 0001's schema = 1.00. Runs of the same
-- variant differ by 10 %, on PostgreSQL 15 by 20 %:
--                                                       18     15
--   no exclusion constraint at all                     0.64   0.57
--   (sha256 as uuid, during), the one chosen           0.80
--   (a column with that uuid, during)                  0.82   0.81
--   (md5 as uuid, during)                              0.78          collisions can be forged
--   (hashtextextended as int8, during)                 0.75   0.78   collisions can be forged, or occur by chance
--   (sha256 as a generated column, during)             0.85          the expression is parsed each time
--   (during, org_id)                                   0.99   1.00
--   (org_id, during) with fillfactor 80                1.07   0.94
-- Without other parts of the schema or of the upsert, and why each was kept:
--   no foreign key on the versions                     0.93   0.89   it protects the history from manual deletions
--   no check of the interval                           0.93   0.98   an empty range would bypass the constraint
--   no index on the start                              1.12   1.22   the search for a blocker and the lists need it
--   no search for a blocker                            0.93   0.89   a conflict would be an error that undoes its batch
--   no unique key on the version number                0.97          a safeguard (0003 drops it)
--   no primary key on the appointments                 0.97          the foreign key needs it

alter table appointments
    drop constraint appointments_during_excl,
    add constraint appointments_during_excl exclude using gist (
        (substring(encode(sha256(replace(org_id, '\', '\\')::bytea), 'hex') for 32)::uuid) with =,
        during with &&
    ) where (not cancelled);
