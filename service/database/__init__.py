"""PostgreSQL: connections, what their failures mean, the statements of `sql/`, migrations and the embedded server.

    pool (reads) ───────┐
                        ├─ connection ─ sql/*.sql         failures: SQLSTATE → try otherwise, 503 or 500
    connection (lane) ──┘

`hosts` finds the host that accepts writes, where there are several. `replicas` has the pools of hot standbys, while
`positions` tell that they are not far behind. `schema` runs migrations/; `embedded`, with `account`, runs the
PostgreSQL that comes with the project.
"""
