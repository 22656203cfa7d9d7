"""POST /api/appointments/batch: a result for each item, from a JSON array or NDJSON."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from service.contract.body import BYTE_ORDER_MARK
from service.contract.items import ITEMS_MAX
from tests.cluster import server_of
from tests.databases import LOCK_ORGANISATION, assert_invariants, query
from tests.http.requests import assert_problem, listed, payload, post
from tests.processes import ServiceProcess, running_service

URL = "/api/appointments/batch"
LINES = {"Content-Type": "application/x-ndjson"}
OK, STALE = {"status": "ok"}, {"status": "ignored-stale"}


def slot(organisation: str, name: str, hour: int, day: int = 1, **changes: Any) -> dict[str, Any]:
    """An hour of 10 October, with `updatedAt` on the given day of September."""
    times = {"start": f"2020-10-10 {hour:02}:00", "end": f"2020-10-10 {hour + 1:02}:00"}
    return payload(organisation, id=name, createdAt="2020-09-01", updatedAt=f"2020-09-{day:02}", **times | changes)


def results(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == ["results"]
    found: list[dict[str, Any]] = body["results"]
    return found


def statuses(response: httpx.Response) -> list[str]:
    return [result["status"] for result in results(response)]


def as_ndjson(items: list[Any]) -> str:
    return "\n".join(json.dumps(item) for item in items)


def test_each_item_gets_a_result_in_the_order_sent(client: httpx.Client, organisation: str) -> None:
    items = [
        slot(organisation, "a", 10),
        slot(organisation, "a", 10),
        slot(organisation, "b", 10),
        slot(organisation, "c", 10, start="2020-10-10 24:00"),
        slot(organisation + "-other", "b", 10),
        {},
        slot(organisation, "c", 11),
    ]
    found = results(client.post(URL, json=items))
    expected = ["ok", "ignored-stale", "conflict", "invalid", "ok", "invalid", "ok"]
    assert [result["status"] for result in found] == expected
    assert (found[0], found[1]) == (OK, STALE)
    for result, item in zip(found, items, strict=True):
        if result["status"] in ("conflict", "invalid"):
            single = client.post("/api/appointments", json=item)
            assert result == {"status": result["status"], "problem": single.json()}
    assert [row["externalId"] for row in listed(client, organisation)] == ["a", "c"]


@pytest.mark.parametrize("as_lines", [False, True])
def test_items_of_one_organisation_are_applied_in_order(
    client: httpx.Client, organisation: str, as_lines: bool
) -> None:
    """A slot is taken until an earlier item moves or cancels the appointment in it."""
    items = [
        slot(organisation, "a", 10),
        slot(organisation, "b", 10),
        slot(organisation, "a", 11, day=2),
        slot(organisation, "b", 10),
        slot(organisation, "a", 10, day=3),
        slot(organisation, "b", 10, day=2, cancelled=True),
        slot(organisation, "a", 10, day=4),
        slot(organisation, "c", 11),
        slot(organisation, "c", 12, day=2),
        slot(organisation, "d", 11),
    ]
    body = {"content": as_ndjson(items), "headers": LINES} if as_lines else {"json": items}
    found = statuses(client.post(URL, **body))
    assert found == ["ok", "conflict", "ok", "ok", "conflict", "ok", "ok", "ok", "ok", "ok"]
    assert [row["externalId"] for row in listed(client, organisation)] == ["a", "d", "c"]


def test_a_full_batch_gives_the_same_results_as_single_requests(client: httpx.Client, organisation: str) -> None:
    names = [f"{organisation}-{number}" for number in range(7)]
    items = [
        slot(names[number % 7], f"i-{number % 90}", number % 23, day=1 + number % 28) for number in range(ITEMS_MAX)
    ]
    responses = [client.post("/api/appointments", json=item | {"orgId": item["orgId"] + "-single"}) for item in items]
    expected = [each.json().get("status") if each.status_code == 200 else "conflict" for each in responses]
    assert statuses(client.post(URL, json=items)) == expected
    assert {"ok", "ignored-stale", "conflict"} == set(expected)
    for name in names:
        from_batch, from_single_requests = (
            [(row["externalId"], row["start"], row["version"]) for row in listed(client, name + suffix)]
            for suffix in ("", "-single")
        )
        assert from_batch == from_single_requests


def test_malformed_lines_are_invalid_items_and_blank_lines_are_skipped(client: httpx.Client, organisation: str) -> None:
    good = json.dumps(slot(organisation, "a", 10)).encode()
    lines = [
        b"",
        b"{",
        good,
        b" \t\r",
        b"\x0c",
        b'"\xff"',
        b"[]",
        b"\xef\xbb\xbf" + good,
        b'"\\ud800"',
        good + b"\r",
        b"[" * 9999,
    ]
    found = results(client.post(URL, content=b"\n".join(lines), headers=LINES))
    assert [result["status"] for result in found] == [
        "invalid", "ok", *["invalid"] * 5, "ignored-stale", "invalid"
    ]  # fmt: skip
    codes = [result["problem"]["code"] for result in found if "problem" in result]
    assert codes == [*["INVALID_JSON"] * 3, "INVALID_REQUEST", *["INVALID_JSON"] * 3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le", "utf-32", "utf-32-be", "utf-8-sig"])
def test_a_body_in_another_encoding_is_rejected_as_a_whole(
    client: httpx.Client, organisation: str, encoding: str
) -> None:
    content = json.dumps([slot(organisation, "a", 10)]).encode(encoding)
    problem = assert_problem(client.post(URL, content=content), 400, "INVALID_JSON")
    assert ("UTF-16" if "utf-8" not in encoding else "begins with a byte order mark") in problem["detail"]


def test_a_byte_order_mark_before_lines_belongs_to_the_first_item(client: httpx.Client, organisation: str) -> None:
    lines = [json.dumps(slot(organisation, name, 10 + hour)).encode() for hour, name in enumerate(("\ufeffa", "b"))]
    found = results(client.post(URL, content=BYTE_ORDER_MARK + b"\n".join(lines), headers=LINES))
    assert [result["status"] for result in found] == ["invalid", "ok"]
    assert "begins with a byte order mark" in found[0]["problem"]["detail"]


BAD_ITEMS = [
    b"tru",
    b"01",
    b"1.",
    b"NaN",
    b"'a'",
    b"\xff",
    b'"\xff"',
    b'"\\ud800"',
    b'"\\x"',
    b'"\t"',
    b"\xef\xbb\xbf{}",
    b"\xef\xbb\xbf1",
    b"{}\xef\xbb\xbf",
    b"[] \xff",
    b'"a" \xc2\xa0',
    b"\xe2\x80\xa8 {}",
    b'{"id": tru}',
    b'{"id": 1,}',
    b'{"id" 1}',
    b'{"id": }',
    b'{"id": "a" "b"}',
    b"{id: 1}",
    b"{'id': 1}",
    b'{"x": "\\ud800, ]"}',
    b'{"x": "\\q\\"}, {"}',
    b'{"x": "\xff}, {\xed\xa0\x80"}',
    b'{"\\udc00": 1}',
    b'{"id": "the "big" one"}',
    b'{"id": [1}}',
    b"[1, 2,, 3]",
    b"[" * 9999 + b"]" * 9999,
]


@pytest.mark.parametrize("bad", BAD_ITEMS, ids=lambda bad: repr(bad[:30]))
@pytest.mark.parametrize("as_lines", [False, True])
def test_an_item_that_is_not_json_does_not_affect_the_others(
    client: httpx.Client, organisation: str, bad: bytes, as_lines: bool
) -> None:
    first, last = (json.dumps(slot(organisation, "],[", hour, day=hour)).encode() for hour in (10, 11))
    items = [first, bad, b"5", last]
    content = b"\r\n".join(items) if as_lines else b" [" + b" ,\n".join(items) + b"\r\n]\n"
    found = results(client.post(URL, content=content, headers=LINES if as_lines else {}))
    assert [result["status"] for result in found] == ["ok", "invalid", "invalid", "ok"]
    single = client.post("/api/appointments", content=bad)
    assert_problem(single, 400, "INVALID_JSON")
    assert found[1]["problem"] == single.json()
    assert listed(client, organisation)[0]["version"] == 2


@pytest.mark.parametrize("bad", BAD_ITEMS, ids=lambda bad: repr(bad[:30]))
def test_a_bad_item_may_be_the_only_one(client: httpx.Client, bad: bytes) -> None:
    [result] = results(client.post(URL, content=b"[" + bad + b"]"))
    assert (result["status"], result["problem"]["code"]) == ("invalid", "INVALID_JSON")


@pytest.mark.parametrize(("content", "headers"), [(b"[]", {}), (b" [ ] ", {}), (b"", LINES), (b"\n \n", LINES)])
def test_an_empty_batch_is_accepted(client: httpx.Client, content: bytes, headers: dict[str, str]) -> None:
    assert results(client.post(URL, content=content, headers=headers)) == []


@pytest.mark.parametrize(
    ("content", "status", "code", "fields"),
    [
        (b"", 400, "INVALID_JSON", None),
        (b"[", 400, "INVALID_JSON", None),
        (b"[1,]", 400, "INVALID_JSON", None),
        (b"[,1]", 400, "INVALID_JSON", None),
        (b"[1,,2]", 400, "INVALID_JSON", None),
        (b"[1 2]", 400, "INVALID_JSON", None),
        (b"[{} {}]", 400, "INVALID_JSON", None),
        (b'["a" "b"]', 400, "INVALID_JSON", None),
        (b"[1}", 400, "INVALID_JSON", None),
        (b"[tru}", 400, "INVALID_JSON", None),
        (b"[{}}, {}]", 400, "INVALID_JSON", None),
        (b"[{}\xff{}]", 400, "INVALID_JSON", None),
        (b"[{}\xff5]", 400, "INVALID_JSON", None),
        (b'["a"\xff"b"]', 400, "INVALID_JSON", None),
        (b"[{, {}]", 400, "INVALID_JSON", None),
        (b'[{"id": "a}, {}]', 400, "INVALID_JSON", None),
        (b'[{"id": "2""}, {"id": "3""}]', 400, "INVALID_JSON", None),
        (b'[{"id": "2" pipe"}, {"id": "3" pipe"}]', 400, "INVALID_JSON", None),
        (b"[tru] x", 400, "INVALID_JSON", None),
        (b"[]\xff", 400, "INVALID_JSON", None),
        (b'"\xff"', 400, "INVALID_JSON", None),
        (b"[" * 100_000, 400, "INVALID_JSON", None),
        (b"{}", 400, "INVALID_REQUEST", [""]),
        (b"null", 400, "INVALID_REQUEST", [""]),
        (b"[" + b"1," * ITEMS_MAX + b"1]", 413, "PAYLOAD_TOO_LARGE", None),
        (b"[tru," + b"1," * ITEMS_MAX + b"{", 413, "PAYLOAD_TOO_LARGE", None),
        (b'["' + b"x" * 4_194_304 + b'"]', 413, "PAYLOAD_TOO_LARGE", None),
    ],
)
def test_a_malformed_batch_is_rejected_as_a_whole(
    client: httpx.Client, content: bytes, status: int, code: str, fields: list[str] | None
) -> None:
    assert_problem(client.post(URL, content=content), status, code, fields)


def test_a_batch_with_too_many_lines_is_rejected_as_a_whole(client: httpx.Client, organisation: str) -> None:
    items = [slot(organisation, "a", 10)] * (ITEMS_MAX + 1)
    assert_problem(client.post(URL, content=as_ndjson(items), headers=LINES), 413, "PAYLOAD_TOO_LARGE")
    assert listed(client, organisation) == []


@pytest.mark.parametrize("content_type", ["text/plain", "application/ndjson", "application/x-ndjson+json2"])
def test_an_unsupported_media_type_is_rejected(client: httpx.Client, content_type: str) -> None:
    response = client.post(URL, content=b"[]", headers={"Content-Type": content_type})
    assert_problem(response, 415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "content_type", ["Application/X-NDJSON; charset=utf-8", "application/a+json", "APPLICATION/JSON"]
)
def test_media_types_match_regardless_of_case_and_parameters(client: httpx.Client, content_type: str) -> None:
    content = b"" if "ndjson" in content_type.lower() else b"[]"
    assert results(client.post(URL, content=content, headers={"Content-Type": content_type})) == []


def test_the_batch_route_accepts_only_post_and_no_parameters(client: httpx.Client) -> None:
    assert_problem(client.post(URL + "?org=x", content=b"[]"), 400, "INVALID_REQUEST", ["org"])
    response = client.get(URL)
    assert_problem(response, 405, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == "POST"


@pytest.fixture
def process(request: pytest.FixtureRequest, database_url: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    with running_service(tmp_path, DATABASE_URL=database_url, **request.param) as started:
        yield started


@pytest.mark.parametrize("process", [{"BATCH_ITEMS_WAITING_MAX": "3"}], indirect=True)
def test_a_batch_that_does_not_fit_in_the_queue_is_refused_as_a_whole(process: ServiceProcess) -> None:
    items = [slot("o", f"a-{number}", number) for number in range(4)]
    assert_problem(process.client.post(URL, json=items), 503, "OVERLOADED")
    assert listed(process.client, "o") == []
    assert statuses(process.client.post(URL, json=items[:3])) == ["ok"] * 3


@pytest.mark.parametrize("process", [{"WRITE_WAIT_MS_MAX": "700"}], indirect=True)
def test_items_that_time_out_are_unknown_and_do_not_affect_the_others(process: ServiceProcess) -> None:
    with psycopg.connect(server_of(process.database_url, "held")) as session:
        session.execute(LOCK_ORGANISATION, ("held",))
        items = [slot("held", "a", 10), slot("free", "a", 10), {}, slot("held", "b", 11)]
        found = results(process.client.post(URL, json=items))
    assert [result["status"] for result in found] == ["unknown", "ok", "invalid", "unknown"]
    for result in (found[0], found[3]):
        assert result["problem"]["code"] == "OVERLOADED"
        assert "nothing was written" in result["problem"]["detail"]
    assert listed(process.client, "held") == []
    assert [row["externalId"] for row in listed(process.client, "free")] == ["a"]


@pytest.mark.parametrize("process", [{}], indirect=True)
def test_an_item_rejected_by_the_database_does_not_affect_the_others(process: ServiceProcess) -> None:
    query(process.database_url, "alter table appointments add constraint refused_here check (external_id <> 'b')")
    items = [slot("o", "a", 10), slot("o", "b", 11), slot("o", "c", 11), slot("p", "a", 10)]
    response = process.client.post(URL, json=items)
    found = results(response)
    assert [result["status"] for result in found] == ["ok", "unknown", "ok", "ok"]
    assert found[1]["problem"]["code"] == "INTERNAL"
    assert "refused_here" not in response.text
    assert [row["externalId"] for row in listed(process.client, "o")] == ["a", "c"]
    assert process.wait_for_event("item of a batch failed")["level"] == "error"


@pytest.mark.parametrize("process", [{}], indirect=True)
def test_valid_items_are_unknown_while_the_database_is_unavailable(process: ServiceProcess) -> None:
    post(process.client, "o")
    [[name]] = query(process.database_url, "select current_database()")
    server = process.database_url.replace(f"/{name}", "/postgres")
    query(server, f"alter database {name} allow_connections false")
    kill = f"select pg_terminate_backend(pid) from pg_stat_activity where datname = '{name}'"
    query(server, kill)
    found = results(process.client.post(URL, json=[slot("o", "a", 10), {}]))
    assert [result["status"] for result in found] == ["unknown", "invalid"]
    assert found[0]["problem"]["code"] == "DATABASE_UNAVAILABLE"
    query(server, f"alter database {name} allow_connections true")


@pytest.mark.parametrize("process", [{"WORKERS": "2"}], indirect=True)
def test_items_keep_their_order_under_contention_between_processes(process: ServiceProcess) -> None:
    """Each batch moves an appointment there and back, so items applied out of order would be stale."""
    found: list[list[str]] = []

    def send(number: int) -> None:
        with httpx.Client(base_url=process.url, timeout=30) as client:
            for turn in range(5):
                name = f"{number}-{turn}"
                hours = [number, number + 8, number]
                items = [slot("o", name, hour, day=day + 1) for day, hour in enumerate(hours)]
                items += [slot("o", name, number, day=9, cancelled=True)]
                found.append(statuses(client.post(URL, json=items)))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [["ok"] * 4] * 40
    assert_invariants(process.database_url)
