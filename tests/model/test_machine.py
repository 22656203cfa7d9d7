"""A Hypothesis state machine that compares the service with the model after every step. A failure prints the requests
as a script that replays them on `make serve`. HISTORIES sets the number of runs, of up to 20 steps each."""

import os
import re
import shlex
import subprocess
from datetime import datetime, timedelta
from uuid import uuid4

import httpx
import msgspec
import pytest
from hypothesis import HealthCheck, note, reporting, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from msgspec.structs import replace

from service.contract.body import Appointment
from tests.model.model import Accepted, Model, decide
from tests.model.test_histories import DAY, HOUR, NAMES, ORGANISATIONS, body, hours, rows
from tests.processes import ServiceProcess

SERVED_URL = "http://127.0.0.1:3000"
STATUSES = {"ok": 200, "ignored-stale": 200, "conflict": 409}
names, organisations = st.sampled_from(NAMES), st.sampled_from(ORGANISATIONS)
lengths = st.sampled_from([HOUR / 60, HOUR, 2 * HOUR])
STEPS = settings(deadline=None, stateful_step_count=20, suppress_health_check=list(HealthCheck))
# Reproducible runs that report a single failure.
REPRODUCIBLE = settings(STEPS, max_examples=200, derandomize=True, database=None, report_multiple_bugs=False)
update_delays = st.sampled_from([timedelta(microseconds=1), HOUR])

if_any_appointment_exists = precondition(lambda machine: bool(machine.latest()))


class Machine(RuleBasedStateMachine):
    """Each rule is something that upstream systems do to appointments."""

    clients: tuple[httpx.Client, httpx.Client]  # may be connected to different processes

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.prefix = uuid4().hex
        self.requests = 0

    def latest(self) -> list[Accepted]:
        """The latest accepted change of each appointment, cancelled ones included."""
        changes = [change for each in self.model.changes.values() for change in each]
        return list({(change.appointment.org_id, change.appointment.id): change for change in changes}.values())

    def send(self, path: str, content: object) -> httpx.Response:
        text = msgspec.json.encode(content).decode()
        note(f"curl -s {SERVED_URL}{path} -H 'Content-Type: application/json' -d {shlex.quote(text)}; echo")
        self.requests += 1
        return self.clients[self.requests % 2].post(path, content=text)

    def put(self, appointment: Appointment) -> None:
        expected = self.model.put(appointment)
        response = self.send("/api/appointments", body(appointment, self.prefix))
        note(f"# expected: {expected}")
        assert response.status_code == STATUSES[expected], response.text
        assert response.json()["code" if expected == "conflict" else "status"] == (
            "TIME_RANGE_UNAVAILABLE" if expected == "conflict" else expected
        )

    @rule(name=names, organisation=organisations, hour=hours, length=lengths)
    def create(self, name: str, organisation: str, hour: int, length: timedelta) -> None:
        start = DAY + hour * HOUR
        self.put(appointment(name, organisation, start, start + length))

    @if_any_appointment_exists
    @rule(data=st.data(), hour=hours, length=lengths, step=update_delays)
    def move(self, data: st.DataObject, hour: int, length: timedelta, step: timedelta) -> None:
        old = data.draw(st.sampled_from(self.latest())).appointment
        start = DAY + hour * HOUR
        self.put(replace(old, start=start, end=start + length, updated_at=old.updated_at + step))

    @if_any_appointment_exists
    @rule(data=st.data(), back=st.sampled_from([timedelta(0), timedelta(microseconds=1), HOUR]), hour=hours)
    def send_a_stale_update(self, data: st.DataObject, back: timedelta, hour: int) -> None:
        """A stale update is ignored even if its interval overlaps another appointment."""
        old = data.draw(st.sampled_from(self.latest())).appointment
        start = DAY + hour * HOUR
        self.put(replace(old, start=start, end=start + HOUR, updated_at=max(DAY, old.updated_at - back)))

    @if_any_appointment_exists
    @rule(data=st.data(), name=names, before=st.booleans(), gap=st.sampled_from([-1, 0, 1]), step=update_delays)
    def place_next_to(self, data: st.DataObject, name: str, before: bool, gap: int, step: timedelta) -> None:
        """Adjacent, a microsecond apart, or overlapping by a microsecond."""
        other = data.draw(st.sampled_from(self.latest())).appointment
        apart = timedelta(microseconds=gap)
        start = other.start - apart - HOUR if before else other.end + apart
        updates = [each.appointment.updated_at for each in self.latest() if each.appointment.id == name]
        self.put(appointment(name, other.org_id, start, start + HOUR, max(updates, default=DAY) + step))

    @if_any_appointment_exists
    @rule(data=st.data(), cancelled=st.booleans(), step=update_delays)
    def cancel_or_reactivate(self, data: st.DataObject, cancelled: bool, step: timedelta) -> None:
        old = data.draw(st.sampled_from(self.latest())).appointment
        self.put(replace(old, cancelled=cancelled, updated_at=old.updated_at + step))

    @precondition(lambda self: len(self.latest()) > 1)
    @rule(data=st.data(), as_batch=st.booleans(), move_aside=st.booleans())
    def swap(self, data: st.DataObject, as_batch: bool, move_aside: bool) -> None:
        """Two appointments swap intervals. Unless the first moves aside, the second finds the interval taken."""
        one, other = (
            each.appointment
            for each in data.draw(st.lists(st.sampled_from(self.latest()), min_size=2, max_size=2, unique_by=id))
        )
        steps = [moved(one, DAY + 100 * HOUR)] if move_aside else []
        steps.append(moved(other, one.start))
        steps.append(moved(steps[0] if move_aside else one, other.start))
        if not as_batch:
            for step in steps:
                self.put(step)
            return
        expected = [self.model.put(step) for step in steps]
        response = self.send("/api/appointments/batch", [body(step, self.prefix) for step in steps])
        note(f"# expected: {', '.join(expected)}")
        assert [result["status"] for result in response.json()["results"]] == expected

    @invariant()
    def lists_match_the_model(self) -> None:
        for organisation in self.model.changes:
            found = rows(self.clients[0], self.prefix + organisation)
            note(f"# list of {organisation}: {found}")
            assert found == self.model.listed(organisation)


def appointment(
    name: str, organisation: str, start: datetime, end: datetime, updated_at: datetime = DAY
) -> Appointment:
    return Appointment(
        id=name, org_id=organisation, start=start, end=end, created_at=DAY, updated_at=updated_at, cancelled=False
    )


def moved(old: Appointment, start: datetime) -> Appointment:
    return replace(old, start=start, end=start + (old.end - old.start), updated_at=old.updated_at + HOUR)


def run(process: ServiceProcess, machine: type[Machine], chosen: settings) -> None:
    with httpx.Client(base_url=process.url, timeout=30) as one, httpx.Client(base_url=process.url, timeout=30) as other:
        machine.clients = one, other
        run_state_machine_as_test(machine, settings=chosen)


def test_every_step_is_as_the_model_predicts(process: ServiceProcess) -> None:
    run(process, Machine, settings(STEPS, max_examples=int(os.environ.get("HISTORIES", "30"))))


class WrongModel(Model):
    """Wrongly accepts an update with an equal `updatedAt`."""

    def put(self, new: Appointment) -> str:
        verdict = super().put(new)
        held = {each.appointment.id: each for each in self.changes[new.org_id]}
        equal = verdict == "ignored-stale" and held[new.id].appointment.updated_at == new.updated_at
        return "ok" if equal and decide({}, new) == "ok" else verdict


class WrongMachine(Machine):
    def __init__(self) -> None:
        super().__init__()
        self.model = WrongModel()


def test_a_failure_prints_a_script_that_replays_it(process: ServiceProcess) -> None:
    printed: list[object] = []
    with reporting.with_reporter(printed.append), pytest.raises(AssertionError) as failure:
        run(process, WrongMachine, REPRODUCIBLE)
    lines = "\n".join(map(str, [*printed, *getattr(failure.value, "__notes__", [])])).splitlines()
    script = [line for line in lines if line.startswith(("curl", "#"))]
    assert len([line for line in script if line.startswith("curl")]) == 2  # shrunk to a creation and its repetition
    fresh = re.sub("[0-9a-f]{32}", uuid4().hex, "\n".join(script)).replace(SERVED_URL, process.url)
    done = subprocess.run(["bash", "-euc", fresh], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ['{"status":"ok"}', '{"status":"ignored-stale"}'], done.stderr
