"""compose.yaml and the Dockerfile, read as they stand: no probe may report ready too early."""

import re
from typing import Any

import yaml  # type: ignore[import-untyped]

from service import ROOT

SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]


def test_database_is_healthy_only_once_it_accepts_tcp_connections() -> None:
    """The image initialises a new database with a server that listens on a socket alone, and restarts it then."""
    kind, *command = SERVICES["db"]["healthcheck"]["test"]
    assert (kind, command[0]) == ("CMD", "pg_isready")
    assert "--host=127.0.0.1" in command
    environment = SERVICES["db"]["environment"]
    assert f"--username={environment['POSTGRES_USER']}" in command
    assert f"--dbname={environment['POSTGRES_DB']}" in command


def test_service_waits_for_a_healthy_database_and_is_healthy_once_it_is_ready() -> None:
    assert SERVICES["service"]["depends_on"] == {"db": {"condition": "service_healthy"}}
    [probe] = re.findall(r"^HEALTHCHECK (?:.*\\\n)*.*", (ROOT / "Dockerfile").read_text(encoding="utf-8"), re.MULTILINE)
    assert "/readyz" in probe
