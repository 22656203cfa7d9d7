"""HTTP: from bytes to a handler and back, whatever the handler is about.

    server ─ connection ─ load_shedding ─ (cors) ─ request_context ─ endpoint ─ handler

`server` runs uvicorn, `workers` several processes of it. `connection` reads requests and `answering`, below it, writes
answers; both rest on uvicorn's internals. `deadlines` ends slow connections. `endpoint` asks `access` for a grant,
reads the body and has it decoded.
The routes stand in service/app.py; `probes` and `docs` are handlers, too, and `openapi` writes what `docs` serves.
"""
