"""Random histories, sent to a service of two processes, compared with the model: responses, lists, lists as of every
instant, versions, changes and free time. HISTORIES sets the number of histories."""

import os
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4

import httpx
import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract.body import Appointment
from tests.http.test_lists import follow_links
from tests.model.free_time import busy, free
from tests.model.model import Model, Row
from tests.processes import ServiceProcess

DAY = datetime(2020, 10, 10, tzinfo=UTC)
HOUR = timedelta(hours=1)
NAMES = ["a", "b", "c", "d"]
ORGANISATIONS = ["one", "two"]
hours = st.integers(0, 6)
appointments = st.builds(
    lambda name, organisation, start, length, updated, cancelled: Appointment(
        id=name,
        org_id=organisation,
        start=DAY + start * HOUR,
        end=DAY + (start + length) * HOUR,
        created_at=DAY,
        updated_at=DAY + updated * HOUR,
        cancelled=cancelled,
    ),
    st.sampled_from(NAMES),
    st.sampled_from(ORGANISATIONS),
    hours,
    st.integers(1, 2),
    st.integers(0, 9),
    st.sampled_from([False, False, False, True]),
)
# A request is a single appointment or a batch.
histories = st.lists(appointments | st.lists(appointments, max_size=8), min_size=1, max_size=30)


def body(appointment: Appointment, prefix: str) -> dict[str, Any]:
    names = {"start": "start", "end": "end", "createdAt": "created_at", "updatedAt": "updated_at"}
    instants = {name: instant(getattr(appointment, field)) for name, field in names.items()}
    more = {"cancelled": True} if appointment.cancelled else {}
    return {"id": appointment.id, "orgId": prefix + appointment.org_id} | instants | more


def instant(value: datetime) -> str:
    return value.isoformat(timespec="microseconds")


def send(client: httpx.Client, request: Appointment | list[Appointment], prefix: str) -> list[str]:
    if isinstance(request, list):
        response = client.post("/api/appointments/batch", json=[body(each, prefix) for each in request])
        assert response.status_code == 200, response.text
        return [result["status"] for result in response.json()["results"]]
    response = client.post("/api/appointments", json=body(request, prefix))
    return ["conflict" if response.status_code == 409 else response.json()["status"]]


def rows(client: httpx.Client, organisation: str, **parameters: object) -> list[Row]:
    """Read in pages of two, so that paging is tested too."""
    url = httpx.URL("/api/appointments", params={"org": organisation, "limit": 2} | parameters)
    found = [row for page in follow_links(client, str(url)) for row in page.json()]
    return [
        (row["externalId"], datetime.fromisoformat(row["start"]), datetime.fromisoformat(row["end"]), row["version"])
        for row in found
    ]


@settings(
    max_examples=int(os.environ.get("HISTORIES", "30")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=histories, minutes=st.sampled_from([0, 60, 61]))
def test_every_response_is_as_the_model_predicts(
    process: ServiceProcess, history: list[Appointment | list[Appointment]], minutes: int
) -> None:
    model, prefix = Model(), uuid4().hex
    with httpx.Client(base_url=process.url, timeout=30) as client:
        for request in history:
            batch = request if isinstance(request, list) else [request]
            assert send(client, request, prefix) == [model.put(each) for each in batch]
        for organisation in ORGANISATIONS:
            check_lists(client, model, organisation, prefix)
            check_history(client, model, organisation, prefix)
            check_availability(client, model, organisation, prefix, minutes)


def check_lists(client: httpx.Client, model: Model, organisation: str, prefix: str) -> None:
    for include in (False, True):
        flag = {"includeCancelled": str(include).lower()}
        org = prefix + organisation
        assert rows(client, org, **flag) == model.listed(organisation, include_cancelled=include)
        for hour in range(9):
            at = DAY + hour * HOUR
            window = {"from": instant(at), "to": instant(at + 2 * HOUR)}
            assert rows(client, org, at=instant(at), **flag) == model.listed(
                organisation, at=at, include_cancelled=include
            )
            assert rows(client, org, **window, **flag) == model.listed(
                organisation, start=at, end=at + 2 * HOUR, include_cancelled=include
            )
        for name in NAMES:
            expected = model.listed(organisation, name=name, include_cancelled=include)
            assert rows(client, org, id=name, **flag) == expected


def check_history(client: httpx.Client, model: Model, organisation: str, prefix: str) -> None:
    changes = client.get("/api/appointments/changes", params={"org": prefix + organisation}).json()["changes"]
    expected = model.changes.get(organisation, [])
    assert [compared_fields(row) for row in changes] == [
        (a.id, a.start, a.end, a.updated_at, a.cancelled, version) for a, version in expected
    ]
    for name in NAMES:
        versions = client.get("/api/appointments/versions", params={"org": prefix + organisation, "id": name}).json()
        assert versions == [row for row in changes if row["externalId"] == name]
        assert all(earlier["receivedAt"] < later["receivedAt"] for earlier, later in pairwise(versions))
    for recorded, row in enumerate(changes, start=1):
        if recorded < len(changes) and changes[recorded]["receivedAt"] == row["receivedAt"]:
            continue
        found = rows(client, prefix + organisation, asOf=row["receivedAt"], includeCancelled="true")
        assert found == model.listed(organisation, recorded, include_cancelled=True)


def compared_fields(row: dict[str, Any]) -> tuple[object, ...]:
    start, end, updated = (datetime.fromisoformat(row[name]) for name in ("start", "end", "payloadUpdatedAt"))
    return row["externalId"], start, end, updated, row["cancelled"], row["version"]


def check_availability(client: httpx.Client, model: Model, organisation: str, prefix: str, minutes: int) -> None:
    start, end = DAY + HOUR / 2, DAY + 7 * HOUR
    window = {"from": instant(start), "to": instant(end), "minMinutes": str(minutes)}
    found = msgspec.json.decode(client.get("/api/availability", params={"org": prefix + organisation} | window).content)
    intervals = {
        kind: [tuple(datetime.fromisoformat(each[edge]) for edge in ("start", "end")) for each in found[kind]]
        for kind in ("busy", "free")
    }
    assert intervals["busy"] == busy(model, organisation, start, end)
    assert intervals["free"] == free(model, organisation, start, end, minutes)
