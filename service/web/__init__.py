"""HTTP: from bytes to a handler and back. Knows no appointment.

    server ─ connection ─ load_shedding ─ request_context ─ (cors) ─ Starlette's router ─ endpoint ─ handler

`server` runs uvicorn, `workers` several processes of it. `connection` is the only module that rests on uvicorn's
internals; `deadlines` ends slow connections. `endpoint` asks `access` for a grant and reads the body. The routes stand
in service/app.py; `probes` and `docs` are handlers of their own, `openapi` writes the document that `docs` serves.
"""
