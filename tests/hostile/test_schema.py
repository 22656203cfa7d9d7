"""The service against its OpenAPI document, with all checks of schemathesis."""

import os
import subprocess
import sys
from pathlib import Path

from tests.databases import assert_invariants, new_database
from tests.processes import clean_environment, running_service

EXAMPLES = os.environ.get("SCHEMA_EXAMPLES", "10")  # for each operation


def test_the_service_conforms_to_its_openapi_document(server_url: str, template: str, tmp_path: Path) -> None:
    with (
        new_database(server_url, template) as url,
        running_service(tmp_path, DATABASE_URL=url, LOG_LEVEL="debug") as service,
    ):
        options = ["--checks=all", f"--max-examples={EXAMPLES}", "--continue-on-failure", "--no-color"]
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{service.url}/api/openapi.json", *options]
        environment = clean_environment(SCHEMATHESIS_HOOKS="tests.hostile.schema_hooks")
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "No issues found" in done.stdout
        assert [event for event in service.events() if event["level"] in ("error", "critical")] == []
        assert_invariants(url)
