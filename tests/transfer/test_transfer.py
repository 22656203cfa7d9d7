"""`python -m service import` and `export`, run as a user runs them."""

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.body import BYTE_ORDER_MARK
from service.import_export import BYTES_MAX, LINES_MAX
from tests.access.issuer import RSA, public_jwk, publishing
from tests.cluster import not_on_citus
from tests.databases import query
from tests.http.requests import assert_accepted, listed, payload, post
from tests.http.test_lists import LINES
from tests.processes import ServiceProcess, clean_environment, running_service


def run(*arguments: str, stdin: bytes | None = None, **settings: str) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(command, env=clean_environment(**settings), input=stdin, capture_output=True, timeout=60)


def lines(organisation: str, count: int) -> bytes:
    days = [f"{2000 + number // 300}-{number % 300 // 28 + 1:02}-{number % 28 + 1:02}" for number in range(count)]
    bodies = [payload(organisation, id=f"a-{number}", start=day, end=day + " 00:01") for number, day in enumerate(days)]
    return b"".join(json.dumps(body).encode() + b"\n" for body in bodies)


def test_an_import_sends_a_file_and_reports_rejected_lines(
    service: ServiceProcess, organisation: str, tmp_path: Path
) -> None:
    file = tmp_path / "appointments.ndjson"
    valid_lines = lines(organisation, LINES_MAX + 20)
    overlapping = json.dumps(payload(organisation, id="z", start="2000-01-01", end="2000-01-02")).encode()
    file.write_bytes(valid_lines + b"\n{\n" + overlapping + b"\n" + valid_lines[:50] + b"\n" + b'{"id":5}\n')
    finished = run("import", str(file), "--url", service.url)
    assert finished.returncode == 1
    assert finished.stdout == b""
    report = finished.stderr.decode().splitlines()  # without a progress bar, as this is no terminal
    assert len(report) == 5
    first = LINES_MAX + 22
    for number, code in (
        (first, "INVALID_JSON"),
        (first + 1, "TIME_RANGE_UNAVAILABLE"),
        (first + 3, "INVALID_REQUEST"),
    ):
        [line] = [each for each in report if each.startswith(f"line {number}: {code}: ")]
    assert "id: Expected a string" in line
    assert report[-1] == f"{LINES_MAX + 20} ok, 3 invalid, 1 conflict"
    assert len(listed(service.client, organisation)) == LINES_MAX + 20


def test_an_import_can_be_repeated_and_read_from_standard_input(service: ServiceProcess, organisation: str) -> None:
    for expected in (b"3 ok", b"3 ignored-stale"):
        finished = run("import", "-", "--url", service.url, stdin=lines(organisation, 3))
        assert (finished.returncode, finished.stderr.splitlines()[-1]) == (0, expected)
    for nothing in (b"", b"\n", BYTE_ORDER_MARK):
        empty = run("import", "-", "--url", service.url, stdin=nothing)
        assert (empty.returncode, empty.stderr) == (0, b"nothing to import\n")


def test_an_overlong_line_is_rejected_and_does_not_affect_the_others(
    service: ServiceProcess, organisation: str
) -> None:
    long = b'{"id":"' + b"x" * (5 * BYTES_MAX) + b'"}\n'
    finished = run("import", "-", "--url", service.url, stdin=lines(organisation, 1) + long + lines(organisation, 2))
    assert finished.returncode == 1
    assert b"line 2: PAYLOAD_TOO_LARGE" in finished.stderr
    assert finished.stderr.splitlines()[-1] == b"2 ok, 1 invalid, 1 ignored-stale"


def test_an_export_equals_the_list_and_can_be_imported(service: ServiceProcess, organisation: str) -> None:
    post(service.client, organisation)
    post(service.client, organisation, id="a-2", cancelled=True)
    url = f"/api/appointments?org={organisation}"
    for option, parameters in (([], ""), (["--include-cancelled"], "&includeCancelled=true")):
        finished = run("export", "--org", organisation, "--url", service.url, *option)
        assert (finished.returncode, finished.stderr) == (0, b"")
        assert finished.stdout == service.client.get(url + parameters, headers=LINES).content
    for_another_organisation = finished.stdout.replace(organisation.encode(), organisation.encode() + b"-2")
    assert run("import", "-", "--url", service.url, stdin=for_another_organisation).returncode == 0
    copies = listed(service.client, organisation + "-2", includeCancelled="true")
    assert [(row["externalId"], row["start"], row["cancelled"]) for row in copies] == [
        (row["externalId"], row["start"], row["cancelled"])
        for row in listed(service.client, organisation, includeCancelled="true")
    ]


@pytest.mark.parametrize("suffix", ["\ufeff&+%2B%zz=#;/?", "\u2028\u0085 \\\"'<\x01\x7f\x1f\t😀\uffff"])
def test_odd_characters_survive_an_export_and_an_import(
    service: ServiceProcess, organisation: str, tmp_path: Path, suffix: str
) -> None:
    names = [
        "\ufeff",
        "\ufeffa\ufeff",
        "a\u2028b\u2029c\u0085d\re\nf",
        '\x01\x1b"\\/',
        "😀\U0010ffff",
        " a ",
        "[",
        "null",
        "\x7f",
    ]
    odd, copy = (f"\ufeff{each}{organisation}{suffix}x" for each in "ab")
    for hour, name in enumerate(names):
        times = {"start": f"2020-10-10 {hour:02}:00", "end": f"2020-10-10 {hour:02}:00:00.000001"}
        assert_accepted(post(service.client, odd, id=name, cancelled=hour % 3 == 0, **times))
    file = tmp_path / "rows.ndjson"
    exported = run("export", "--org", odd, "--include-cancelled", "--url", service.url).stdout
    rows = [json.loads(row) for row in exported.split(b"\n") if row]
    assert [row["externalId"] for row in rows] == names
    file.write_text("\n".join(json.dumps(row | {"orgId": copy}, ensure_ascii=False) for row in rows), encoding="utf-8")
    finished = run("import", str(file), "--url", service.url)
    assert (finished.returncode, finished.stderr) == (0, b"%d ok\n" % len(names))
    ignored = {"id": None, "orgId": None, "version": None}
    copies = [row | ignored for row in listed(service.client, copy, includeCancelled="true")]
    assert copies == [row | ignored for row in rows]
    assert {row["cancelled"] for row in copies} == {True, False}


@pytest.mark.parametrize("mark", [b"", BYTE_ORDER_MARK])
@pytest.mark.parametrize(
    ("line_end", "last"), [(b"\n", b"\n"), (b"\r\n", b"\r\n"), (b"\n", b""), (b"\n \r\n\n", b"\t")]
)
def test_every_form_of_lines_is_imported(
    service: ServiceProcess, organisation: str, mark: bytes, line_end: bytes, last: bytes
) -> None:
    bodies = [*lines(organisation, 3).splitlines(), b"5", b'{"id": tru}', BYTE_ORDER_MARK + b"{}", b"\x0c"]
    finished = run("import", "-", "--url", service.url, stdin=mark + line_end.join(bodies) + last)
    assert finished.returncode == 1
    report = finished.stderr.decode().splitlines()
    codes, step = ["INVALID_REQUEST", *["INVALID_JSON"] * 3], line_end.count(b"\n")
    assert [line.split(": ")[:2] for line in report[:4]] == [
        [f"line {1 + place * step}", code] for place, code in enumerate(codes, start=3)
    ]
    assert "begins with a byte order mark" in report[2]
    assert report[4:] == ["3 ok, 4 invalid"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gzip.compress, b"error: The file is compressed"),
        (lambda valid: valid.decode().encode("utf-16"), b"error: The file looks like UTF-16"),
        (lambda valid: valid.decode().encode("utf-16-le"), b"error: The file looks like UTF-16"),
        (lambda valid: valid.decode().encode("utf-32-be"), b"error: The file looks like UTF-16 or UTF-32"),
        (lambda valid: BYTE_ORDER_MARK + b"\n [" + valid.rstrip() + b"]", b"error: The file is a JSON array"),
    ],
    ids=["gzip", "utf-16", "utf-16-le", "utf-32-be", "array"],
)
@pytest.mark.parametrize("from_file", [False, True])
def test_a_file_that_is_not_ndjson_is_refused_in_one_line(
    service: ServiceProcess,
    organisation: str,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    message: bytes,
    from_file: bool,
) -> None:
    file = tmp_path / "appointments"
    file.write_bytes(change(lines(organisation, 2)))
    finished = run("import", str(file) if from_file else "-", "--url", service.url, stdin=file.read_bytes())
    assert (finished.returncode, finished.stdout) == (1, b"")
    [line] = finished.stderr.splitlines()
    assert line.startswith(message)
    assert listed(service.client, organisation) == []


def test_an_export_as_of_an_instant_has_the_state_recorded_then(service: ServiceProcess, organisation: str) -> None:
    post(service.client, organisation)
    [version] = service.client.get(f"/api/appointments/versions?org={organisation}&id=a-1").json()
    post(service.client, organisation, start="2020-10-10 09:00", updatedAt="2020-09-30")
    finished = run("export", "--org", organisation, "--as-of", version["receivedAt"], "--url", service.url)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert json.loads(finished.stdout)["start"] == version["start"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--as-of", "x"], b"`errors` lists every fault. asOf: "),
        (["import", "/nowhere"], b"No such file"),
        (["import", "/"], b"Is a directory"),
        (["import", "-", "--url", "http://127.0.0.1:1"], b"error: No service answers at http://127.0.0.1:1"),
        (["import", "-", "--url", "http://u:password@127.0.0.1:1"], b" answers at http://u:***@127.0.0.1:1"),
        (["export", "--url", "http://127.0.0.1:1"], b"error: The list is incomplete"),
        (["export", "--url", "127.0.0.1:3000"], b"error: The URL is wrong: expected one like http://127.0.0.1:3000."),
        (["export", "--url", f"http://{'a' * 64}"], b"error: The URL is wrong: "),
    ],
)
def test_a_failure_is_reported_in_one_line(service: ServiceProcess, arguments: list[str], message: bytes) -> None:
    url_option = [] if "--url" in arguments else ["--url", service.url]
    finished = run(*arguments, *url_option, stdin=b"{}")
    assert (finished.returncode, finished.stdout) == (1, b"")
    [line] = finished.stderr.splitlines()
    assert line.startswith(b"error: ")
    assert message in line


def test_url_of_something_else_is_reported_in_one_line(service: ServiceProcess) -> None:
    finished = run("import", "-", "--url", f"{service.url}/elsewhere", stdin=b"{}")
    error = f"error: No service answers at {service.url}/elsewhere/: status 404"
    assert (finished.returncode, finished.stderr.decode().splitlines()) == (1, [error])


def test_the_url_defaults_to_the_settings(service: ServiceProcess, organisation: str) -> None:
    post(service.client, organisation)
    port = str(httpx.URL(service.url).port)
    finished = run("export", "--org", organisation, PORT=port)
    assert (finished.returncode, finished.stderr) == (0, b"")
    assert json.loads(finished.stdout)["externalId"] == "a-1"


@not_on_citus  # there the coordinator collects all rows before it sends the first
def test_a_truncated_export_is_reported_as_incomplete(database_url: str, tmp_path: Path) -> None:
    fill = """insert into appointments
        (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
        select organisation_bucket('long'), 'long', n,
            tstzrange(start, start + interval '1 hour'), start, start, start, 1
        from (select n, timestamptz '2000-01-01Z' + n * interval '1 hour' as start
            from generate_series(1, 60000) as n) as s"""
    query(database_url, fill)
    with running_service(tmp_path, DATABASE_URL=database_url, STREAM_MS_MAX="50") as process:
        finished = run("export", "--org", "long", "--url", process.url)
    assert finished.returncode == 1
    assert b"error: The list is incomplete" in finished.stderr


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_import_and_export_reach_this_machine_without_a_proxy(
    service: ServiceProcess, organisation: str, name: str
) -> None:
    environment: dict[str, Any] = {name: "http://127.0.0.1:1"}  # nothing listens there
    imported = run("import", "-", "--url", service.url, stdin=lines(organisation, 1), **environment)
    assert (imported.returncode, imported.stderr.splitlines()[-1]) == (0, b"1 ok")
    exported = run("export", "--org", organisation, "--url", service.url, **environment)
    assert (exported.returncode, len(exported.stdout.splitlines())) == (0, 1)


@pytest.mark.parametrize("command", [["import", "-"], ["export"]])
def test_import_and_export_use_a_proxy_for_other_hosts(command: list[str]) -> None:
    with publishing(public_jwk("one", RSA)) as proxy:
        run(*command, "--url", "http://service.invalid", stdin=b"", HTTP_PROXY=proxy.url)
        assert proxy.paths[0].startswith("http://service.invalid/")
        run(*command, "--url", "http://service.invalid", stdin=b"", HTTP_PROXY=proxy.url, NO_PROXY="service.invalid")
        assert len(proxy.paths) == 1
    failed = run(*command, "--url", "http://service.invalid", stdin=b"", HTTP_PROXY="socks5://proxy.example")
    assert failed.returncode == 1
    assert failed.stderr.splitlines() == [b"error: HTTP_PROXY is wrong: expected a URL like http://proxy.example:3128."]


@pytest.mark.parametrize("command", [["import", "-"], ["export"]])
@pytest.mark.parametrize("token", ["not ASCII: é", "s3cret\nlines"])
def test_an_unusable_token_ends_without_a_stack_trace(service: ServiceProcess, command: list[str], token: str) -> None:
    finished = run(*command, "--url", service.url, stdin=b"", AUTH_TOKEN=token)
    assert b"Traceback" not in finished.stderr
    assert b"s3cret" not in finished.stderr
