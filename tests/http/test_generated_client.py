"""A client that openapi-python-client generates from the OpenAPI document calls the service."""

import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from typing import Any
from uuid import uuid4

import pytest

from tests.processes import ServiceProcess, clean_environment

ID = "ü😀 a,b\n"
INSTANTS = {
    "start": "0001-01-01",
    "end": "2020-10-10 10:30",
    "created_at": "2020-09-02 14:23:12",
    "updated_at": "2020-09-28 14:23:12.0000019",
}


class GeneratedClient:
    """Its operations are `<tag>.<operation>`; each returns the parsed body, after a check of the status."""

    def __init__(self, package: str, client: Any) -> None:
        self._package, self._client = package, client
        self.models = import_module(f"{package}.models")

    def call(self, operation: str, expected_status: int = 200, **arguments: Any) -> Any:
        module = import_module(f"{self._package}.api.{operation}")
        response = module.sync_detailed(client=self._client, **arguments)
        assert response.status_code == expected_status, response.content
        assert response.parsed is not None or expected_status == 304
        return response.parsed

    def payload(self, organisation: str | None, **changes: Any) -> Any:
        return self.models.AppointmentPayload(**{"id": ID, "org_id": organisation} | INSTANTS | changes)


@pytest.fixture(scope="module")
def generated(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GeneratedClient]:
    directory = tmp_path_factory.mktemp("generated")
    package = f"client_{uuid4().hex}"
    (directory / "config.yml").write_text("post_hooks: []\n")
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--url", f"{service.url}/api/openapi.json"]
    options = ["--meta", "none", "--output-path", str(directory / package), "--config", str(directory / "config.yml")]
    done = subprocess.run(command + options, env=clean_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    # Its only warning: batches are sent as JSON, not as NDJSON too.
    assert done.stderr.count("WARNING") == done.stderr.count("Unsupported content type application/x-ndjson") == 1
    sys.path.insert(0, str(directory))
    try:
        client = import_module(package).Client(base_url=service.url, raise_on_unexpected_status=True)
        with client:
            yield GeneratedClient(package, client)
    finally:
        sys.path.remove(str(directory))


def test_a_generated_client_writes_and_reads(generated: GeneratedClient, organisation: str) -> None:
    payload = generated.payload(organisation)
    assert generated.call("appointments.put_appointment", body=payload).status == "ok"
    assert generated.call("appointments.put_appointment", body=payload).status == "ignored-stale"
    [row] = generated.call("appointments.list_appointments", org=organisation)
    assert (row.external_id, row.org_id, row.version) == (ID, organisation, 1)
    assert (row.start, row.payload_updated_at) == ("0001-01-01T00:00:00.000Z", "2020-09-28T14:23:12.000001Z")
    [row] = generated.call("appointments.list_appointments", org=organisation, include_cancelled=True, limit=1, id=ID)
    assert row.cancelled is False
    assert generated.call("appointments.list_appointments", org=organisation, from_="2020-10-10 10:30") == []
    [version] = generated.call("history.list_versions", org=organisation, id=ID)
    found = generated.call("history.list_changes", org=organisation)
    assert found.changes == [version]
    assert generated.call("history.list_changes", org=organisation, after=found.cursor).changes == []
    times = generated.call("calendar.availability", org=organisation, from_="2020-10-10 10:00", to="2020-10-10 11:00")
    assert [(free.start, free.end) for free in times.free] == [("2020-10-10T10:30:00.000Z", "2020-10-10T11:00:00.000Z")]
    assert "BEGIN:VEVENT" in generated.call("calendar.calendar", org=organisation)
    generated.call("calendar.calendar", expected_status=304, org=organisation, if_none_match="*")
    assert generated.call("operation.ready").status == "ok"
    assert "# TYPE " in generated.call("operation.metrics")


def test_a_generated_client_sends_a_batch_and_reads_each_result(generated: GeneratedClient, organisation: str) -> None:
    end = "9999-12-31T23:59:59.9999999Z"
    batch = [
        generated.payload(organisation),
        generated.payload(organisation, id="a-2"),
        generated.payload(organisation, id=" "),
        generated.payload(organisation, id="a-3", start="2020-10-10 10:30", end=end, cancelled=True),
    ]
    results = generated.call("appointments.put_batch", body=batch).results
    assert [result.status for result in results] == ["ok", "conflict", "invalid", "ok"]
    assert results[1].problem.conflict.external_id == ID
    assert [fault.field for fault in results[2].problem.errors] == ["id"]
    rows = generated.call("appointments.list_appointments", org=organisation, include_cancelled=True)
    assert rows[1].end == "9999-12-31T23:59:59.999999Z"


def test_a_generated_client_reads_errors_as_problems(generated: GeneratedClient, organisation: str) -> None:
    generated.call("appointments.put_appointment", body=generated.payload(organisation))
    overlapping = generated.payload(organisation, id="a-2", org_id=organisation)
    conflict = generated.call("appointments.put_appointment", expected_status=409, body=overlapping)
    assert (conflict.code, conflict.conflict.external_id) == ("TIME_RANGE_UNAVAILABLE", ID)
    faulty = generated.payload(None, id="", start="tomorrow")
    invalid = generated.call("appointments.put_appointment", expected_status=400, body=faulty)
    assert (invalid.code, [fault.field for fault in invalid.errors]) == ("INVALID_REQUEST", ["id", "start"])
    at = generated.call("appointments.list_appointments", expected_status=400, at="tomorrow")
    assert isinstance(at, generated.models.Problem)
    assert at.code == "INVALID_DATE_FORMAT"
