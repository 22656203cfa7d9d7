"""An appointment service for JSON API clients: one true schedule for each organisation.

A request passes through the packages in this order:

    web ─ access ─ contract ─ writing | reading ─ database ─ sql/*.sql ─ PostgreSQL

Imports point from web to writing | reading, access, contract and database, never back (`make lint`). Below them are the
modules of this folder: supervisor, settings, logs, metrics and problems; contract imports only the last of these.
`app` puts the packages together, `__main__` is the command line, and README.md here names the files in order.
"""

from pathlib import Path

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent
