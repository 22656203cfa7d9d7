"""Writing appointments: group commit.

    handlers ─ writer ─ lane ─ batch ─ database/connection ─ sql/upsert_appointment.sql
                   └─ contended ─ batch ─ database/pool ─┘

`writer` admits a write and hands it to the lane, which commits everything that has gathered as one batch. `batch`
arranges writes into calls of the statement and turns its rows into verdicts. Writes whose organisation another process
is working on, and batches sent by clients, go through `contended`, which waits for the locks.

Where Citus has distributed the tables, all writes go by bucket:

    handlers ─ writer ─ distributed ─ batch ─ database/pool ─ sql/put_appointments.sql

`contended` and `distributed` share the queues of `organisations`, and with the lane the pauses of `back_off`.
"""
