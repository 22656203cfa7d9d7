"""The service with other constants: `python -m tests.launcher serve`. Limits that operators need not change are
constants; a test that needs another value names it like a setting."""

import os
import sys
from importlib import import_module

from service.__main__ import main
from service.database import statements

CONSTANTS = {
    "ALWAYS_BY_BUCKET": "service.writing.writer.ALWAYS_BY_BUCKET",
    "AUTH_JWKS_SECONDS": "service.access.published_keys.REFRESH_SECONDS",
    "BATCH_ITEMS_WAITING_MAX": "service.writing.writer.ITEMS_WAITING_MAX",
    "BODY_MS_MAX": "service.web.deadlines.BODY_MS_MAX",
    "CHANGES_WAITING_MAX": "service.reading.change_poller.WAITING_MAX",
    "FRAMED_BODY_BYTES_MAX": "service.web.connection.FRAMED_BODY_BYTES_MAX",
    "HEADER_BYTES_MAX": "service.web.connection.HEADER_BYTES_MAX",
    "HEADER_MS_MAX": "service.web.deadlines.HEAD_MS_MAX",
    "LINGER_MS_MAX": "service.web.deadlines.LINGER_MS_MAX",
    "POOL_WAITING_MAX": "service.database.pool.POOL_WAITING_MAX",
    "POOL_WAIT_MS_MAX": "service.database.pool.POOL_WAIT_MS_MAX",
    "STREAM_CONNECTIONS_MAX": "service.app.STREAM_CONNECTIONS_MAX",
}

# What a least-privilege role gets on Citus, for any database.
GRANTS_BY_BUCKET = statements.DISTRIBUTED_GRANTS._replace(
    text=statements.DISTRIBUTED_GRANTS.text.partition("\nfrom pg_trigger")[0] + ";\n"
)

if __name__ in ("__main__", "__mp_main__"):  # the latter in workers
    for name, path in CONSTANTS.items():
        if name in os.environ:
            module, _, constant = path.rpartition(".")
            assert hasattr(import_module(module), constant), path
            setattr(import_module(module), constant, int(os.environ[name]))
    if "ALWAYS_BY_BUCKET" in os.environ:
        statements.DISTRIBUTED_GRANTS = GRANTS_BY_BUCKET

if __name__ == "__main__":
    sys.exit(main())
