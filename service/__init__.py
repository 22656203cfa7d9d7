"""An appointment service for JSON API clients: one true schedule for each organisation.

A request passes the packages in this order, and imports point the same way, never back:

    web ─ access ─ contract ─ writing | reading ─ database ─ sql/*.sql ─ PostgreSQL

Every package may import the modules beside them: settings, problems, logs, metrics, supervisor. `app` puts the
packages together, `__main__` is the command line, and README.md in this folder names the files in order.
"""

from pathlib import Path

VERSION = "0.1.0"
ROOT = Path(__file__).resolve().parent.parent
