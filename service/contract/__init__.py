"""What clients send and get, as types and pure functions: no I/O, and nothing of access rights.

    headers ─ parameters ─┐
                          ├─ fields ─ instants, cursors          answers: the shapes of responses
    items ─ body ─────────┘

`parameters` reads query strings and `body` reads JSON; both report every fault at once. `items` splits batches. The
types are also the schemas of the OpenAPI document (service/web/openapi.py).
"""
