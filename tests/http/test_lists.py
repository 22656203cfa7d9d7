"""GET /api/appointments in depth: filters, pages, NDJSON, ETags and long lists."""

from base64 import urlsafe_b64encode
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from service.contract.parameters import ROWS_MAX
from tests.databases import query
from tests.http.requests import assert_accepted, assert_problem, listed, post
from tests.processes import ServiceProcess
from tests.stripping_proxy import stripping_proxy

LATER = "2020-09-29"
LINES = {"Accept": "application/x-ndjson"}
CHANGES = "/api/appointments/changes"


def ids(rows: list[dict[str, Any]]) -> list[str]:
    return [row["externalId"] for row in rows]


@pytest.fixture
def hours(client: httpx.Client, organisation: str) -> None:
    """`a` 10:00 to 11:00, `b` 11:00 to 12:00, `c` 13:00 to 14:00, and `x`, cancelled, 10:00 to 20:00."""
    for name, start, end in (("c", 13, 14), ("a", 10, 11), ("b", 11, 12)):
        assert_accepted(post(client, organisation, id=name, start=f"2020-10-10 {start}:00", end=f"2020-10-10 {end}:00"))
    assert_accepted(post(client, organisation, id="x", end="2020-10-10 20:00", cancelled=True))


@pytest.mark.usefixtures("hours")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"from": "2020-10-10 11:00"}, "bc"),
        ({"from": "2020-10-10 10:59:59.999999"}, "abc"),
        ({"to": "2020-10-10 11:00"}, "a"),
        ({"to": "2020-10-10 11:00:00.000001"}, "ab"),
        ({"from": "2020-10-10 10:30", "to": "2020-10-10 11:30"}, "ab"),
        ({"from": "2020-10-10 12:00", "to": "2020-10-10 13:00"}, ""),
        ({"from": "2020-10-10 12:00", "to": "2020-10-10 13:30", "at": "2020-10-10 13:00"}, "c"),
        ({"from": "2020-10-10 12:00", "at": "2020-10-10 11:00"}, ""),
        ({"from": "0001-01-01", "to": "9999-12-31T23:59:59.999999"}, "abc"),
        ({"to": "0001-01-01"}, ""),
        ({"from": "9999-12-31T23:59:59.999999"}, ""),
        ({"id": "b"}, "b"),
        ({"id": "b", "at": "2020-10-10 11:30"}, "b"),
        ({"id": "b", "at": "2020-10-10 10:30"}, ""),
        ({"id": "b", "from": "2020-10-10 12:00"}, ""),
        ({"id": "B"}, ""),
        ({"id": "x"}, ""),
    ],
)
@pytest.mark.parametrize("as_of", [{}, {"asOf": "9999-12-31"}], ids=["now", "as of"])
def test_filters_narrow_the_list(
    client: httpx.Client, organisation: str, parameters: dict[str, str], as_of: dict[str, str], expected: str
) -> None:
    assert "".join(ids(listed(client, organisation, **parameters, **as_of))) == expected


@pytest.mark.usefixtures("hours")
@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, ["a", "x", "b", "c"]),
        ({"at": "2020-10-10 11:30"}, ["x", "b"]),
        ({"from": "2020-10-10 14:00"}, ["x"]),
        ({"to": "2020-10-10 11:00"}, ["a", "x"]),
        ({"id": "x"}, ["x"]),
        ({"id": "a"}, ["a"]),
        ({"id": "none"}, []),
    ],
)
@pytest.mark.parametrize("as_of", [{}, {"asOf": "9999-12-31"}], ids=["now", "as of"])
def test_include_cancelled_lists_cancelled_appointments_and_flags_every_row(
    client: httpx.Client, organisation: str, parameters: dict[str, str], as_of: dict[str, str], expected: list[str]
) -> None:
    rows = listed(client, organisation, includeCancelled="true", **parameters, **as_of)
    assert ids(rows) == expected
    assert [row["cancelled"] for row in rows] == [name == "x" for name in expected]
    active = listed(client, organisation, includeCancelled="false", **parameters, **as_of)
    assert ids(active) == [name for name in expected if name != "x"]
    assert all("cancelled" not in row for row in active)


@pytest.mark.parametrize(
    ("parameters", "code", "fields"),
    [
        ({"from": "2020-10-10", "to": "2020-10-10"}, "INVALID_TIME_RANGE", None),
        ({"from": "2020-10-11", "to": "2020-10-10"}, "INVALID_TIME_RANGE", None),
        ({"from": "x", "to": "y"}, "INVALID_DATE_FORMAT", ["from", "to"]),
        ({"asOf": "now"}, "INVALID_DATE_FORMAT", ["asOf"]),
        ({"includeCancelled": "TRUE"}, "INVALID_REQUEST", ["includeCancelled"]),
        ({"includeCancelled": "1"}, "INVALID_REQUEST", ["includeCancelled"]),
        ({"limit": "0"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": "1001"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": "-1"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": "1.0"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": " 1"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": "\u0661"}, "INVALID_REQUEST", ["limit"]),
        ({"limit": "9" * 5000}, "INVALID_REQUEST", ["limit"]),
        ({"id": " "}, "INVALID_REQUEST", ["id"]),
        ({"limit": "x", "from": "x"}, "INVALID_REQUEST", ["from", "limit"]),
    ],
)
def test_an_invalid_filter_is_rejected(
    client: httpx.Client, parameters: dict[str, str], code: str, fields: list[str] | None
) -> None:
    assert_problem(client.get("/api/appointments", params=parameters), 400, code, fields)


def follow_links(client: httpx.Client, url: str, headers: dict[str, str] | None = None) -> list[httpx.Response]:
    """All pages, found by their `next` links."""
    pages = [client.get(url, headers=headers)]
    while "next" in pages[-1].links:
        pages.append(client.get(pages[-1].links["next"]["url"], headers=headers))
    assert all(page.status_code == 200 for page in pages), pages[-1].text
    return pages


@pytest.mark.usefixtures("hours")
@pytest.mark.parametrize("limit", [1, 2, 3, 4, 1000])
@pytest.mark.parametrize(
    "more", ["", "&includeCancelled=true", "&asOf=9999-12-31", "&from=2020-10-10T10:30:00%2B00:00"]
)
def test_pages_add_up_to_the_list(client: httpx.Client, organisation: str, limit: int, more: str) -> None:
    url = f"/api/appointments?org={organisation}{more}"
    whole = client.get(url).json()
    pages = [page.json() for page in follow_links(client, f"{url}&limit={limit}")]
    assert [row for page in pages for row in page] == whole
    assert [len(page) for page in pages[:-1]] == [limit] * (len(pages) - 1)
    assert 0 < len(pages[-1]) <= limit


def test_a_page_starts_after_the_last_row_even_if_that_row_has_moved(client: httpx.Client, organisation: str) -> None:
    """Also if another appointment now starts at the same time."""
    for place in range(4):
        post(client, organisation, id=f"m-{place}", start=f"2020-10-1{place}", end=f"2020-10-1{place} 01:00")
    first = client.get(f"/api/appointments?org={organisation}&limit=2")
    post(client, organisation, id="m-1", start="2019-01-01", end="2019-01-02", updatedAt=LATER)
    for name in ("a", "z"):
        post(client, organisation, id=name, start="2020-10-11", end="2020-10-11 01:00", updatedAt=LATER)
        rest = client.get(first.links["next"]["url"]).json()
        assert ids(rest) == (["m-2", "m-3"] if name == "a" else ["z", "m-2"])
        post(client, organisation, id=name, cancelled=True, updatedAt="2020-09-30")


def test_a_next_link_keeps_all_parameters(client: httpx.Client, organisation: str) -> None:
    name = f"{organisation} & <ü>"
    for day in (1, 2):
        post(client, name, id=f"a-{day}", start=f"2020-10-0{day}", end=f"2020-10-0{day} 01:00")
    response = client.get("/api/appointments", params={"org": name, "limit": "1", "to": "2020-12-01T00:00:00+01:00"})
    url = response.links["next"]["url"]
    assert url.startswith("/api/appointments?")
    assert url.isascii()
    following = client.get(url)
    assert ids(following.json()) == ["a-2"]
    assert following.links == {}


@pytest.mark.parametrize(("path", "more"), [("/api/appointments", {}), ("/api/appointments/versions", {"id": "m-1"})])
def test_next_links_lead_on_behind_a_proxy_that_strips_a_prefix(
    service: ServiceProcess, organisation: str, path: str, more: dict[str, str]
) -> None:
    for hour in (10, 11, 12):
        times = {"start": f"2020-10-10 {hour}:00", "end": f"2020-10-10 {hour}:30"}
        for name in (f"a-{hour}", "m-1"):
            cancelled = name == "m-1"
            assert_accepted(
                post(service.client, organisation, id=name, cancelled=cancelled, updatedAt=times["end"], **times)
            )
    query = {"org": organisation} | more
    whole = service.client.get(path, params=query).json()
    with stripping_proxy(service.url) as url:
        pages = [httpx.get(url + path, params=query | {"limit": "1"})]
        while link := pages[-1].links.get("next"):
            pages.append(httpx.get(urljoin(str(pages[-1].url), link["url"])))
    assert [row for page in pages for row in page.json()] == whole
    assert len(pages) >= 3


@pytest.mark.parametrize(
    ("values", "prefix"),
    [
        (["/a"], "/a"),
        (["/a/b-1/"], "/a/b-1"),
        (["/a", "/b"], "/a/b"),
        (["/a/, /b"], "/a/b"),
        (["/"], ""),
        ([""], ""),
        (["a"], ""),
        (["//a"], ""),
        (["/a//b"], ""),
        (["https://a"], ""),
        (["/a>; rel=next"], ""),
        (["/a?b"], ""),
        (["/\xe9"], ""),
    ],
)
def test_a_next_link_begins_with_a_sane_prefix(
    client: httpx.Client, organisation: str, values: list[str], prefix: str
) -> None:
    for day in (1, 2):
        post(client, organisation, id=f"a-{day}", start=f"2020-10-0{day}", end=f"2020-10-0{day} 01:00")
    headers = [(b"X-Forwarded-Prefix", value.encode("latin-1")) for value in values]
    response = client.get("/api/appointments", params={"org": organisation, "limit": "1"}, headers=headers)
    assert response.headers["link"].startswith(f"<{prefix}/api/appointments?org={organisation}&limit=1&cursor=")


def encode_cursor(json: bytes) -> str:
    return urlsafe_b64encode(json).rstrip(b"=").decode()


VALID_CURSOR = encode_cursor(b'{"start":"2020-10-10T10:00:00.000Z","externalId":"a"}')


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "1",
        "=",
        VALID_CURSOR + "=",
        VALID_CURSOR + " ",
        VALID_CURSOR[:-1],
        VALID_CURSOR.replace("e", "+", 1),
        "\u00e9",
        encode_cursor(b"{}"),
        encode_cursor(b"[]"),
        encode_cursor(b"\xff"),
        encode_cursor(b'{"start":"2020-10-10T10:00:00.000Z","externalId":"a\\u0000"}'),
        encode_cursor(b'{"start":"2020-10-10T10:00:00.000Z","externalId":"a","more":1}'),
        encode_cursor(b'{"start":"tomorrow","externalId":"a"}'),
        encode_cursor(b'{"start":"2020-10-10T10:00:00.000Z","externalId":5}'),
        encode_cursor(b'{"receivedAt":"2020-10-10T10:00:00.000Z"}'),
        encode_cursor(b"[" * 20_000),
    ],
)
def test_a_malformed_cursor_is_rejected(client: httpx.Client, cursor: str) -> None:
    response = client.get("/api/appointments", params={"limit": "1", "cursor": cursor})
    assert_problem(response, 400, "INVALID_REQUEST", ["cursor"])


def test_a_cursor_requires_a_limit(client: httpx.Client) -> None:
    assert client.get("/api/appointments", params={"limit": "1", "cursor": VALID_CURSOR}).status_code == 200
    problem = assert_problem(client.get(f"/api/appointments?cursor={VALID_CURSOR}"), 400, "INVALID_REQUEST", ["cursor"])
    assert "`limit`" in problem["errors"][0]["detail"]


@pytest.mark.usefixtures("hours")
def test_ndjson_has_one_row_per_line(client: httpx.Client, organisation: str) -> None:
    url = f"/api/appointments?org={organisation}"
    response = client.get(url, headers=LINES)
    assert response.headers["content-type"] == "application/x-ndjson"
    assert response.headers["vary"] == "Accept"
    assert [httpx.Response(200, content=line).json() for line in response.text.splitlines()] == client.get(url).json()
    assert response.text.endswith("}\n")
    assert client.get(url + "-none", headers=LINES).content == b""
    pages = follow_links(client, url + "&limit=2", LINES)
    assert "".join(page.text for page in pages) == response.text


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        ("application/x-ndjson", True),
        ("Application/X-NDJSON;q=0.5", True),
        ("application/x-ndjson, */*", True),
        ("application/json;q=0.9, application/x-ndjson", True),
        ("application/x-ndjson;q=0.5, application/json", False),
        ("application/json, application/x-ndjson, application/problem+json", False),
        ("application/json;q=-1", False),
        ("application/x-ndjson;q=0", False),
        ("application/x-ndjson;q=x", False),
        ("*/*", False),
        ("text/html", False),
        ("", False),
        # The most specific range gives the weight.
        ("application/x-ndjson;q=0.5, */*", False),
        ("application/x-ndjson;q=0.5, application/*", False),
        ("application/x-ndjson, application/*;q=0.5", True),
        ("*/*;q=0.9, application/*;q=0.1, application/x-ndjson;q=0.2", True),
        ("*/*, application/*;q=0.1, application/json;q=0.5", False),
        ("application/x-ndjson, */*;q=0.1", True),
        ("application/json;q=0.5, */*", True),
        ("application/json;q=0.5, */*;q=0.1", False),
        ("text/html, application/xml;q=0.9, */*;q=0.8", False),
        ("text/html, image/gif, *; q=.2, */*; q=.2", False),
        ("text/*, application/*", False),
        # A weight of 0 excludes.
        ("application/json;q=0, */*", True),
        ("application/json;q=0.000, application/*;q=0.001", True),
        ("application/x-ndjson;q=0, */*", False),
        ("application/json;q=0", False),
        ("application/json;q=0, application/x-ndjson;q=0", False),
        ("*/*;q=0", False),
        ("*/*;q=0, application/x-ndjson", True),
        ("application/*;q=0, */*", False),
        # Spelling of weights, and weights that are not valid.
        ("application/json;Q=0.5, application/x-ndjson;Q=0.6", True),
        ("application/json ; q=.5 , application/x-ndjson ; q=0.4", False),
        ("application/json;q=0.999, application/x-ndjson;q=1.", True),
        ("application/json;q=0.5, application/x-ndjson;q=2", False),
        ("application/json, application/x-ndjson;q=1.5", False),
        ("application/json, application/x-ndjson;q=inf", False),
        ("application/json, application/x-ndjson;q=nan", False),
        ("application/json, application/x-ndjson;q=-1", False),
        ("application/json, application/x-ndjson;q=", False),
        ("application/json;q=x, */*", False),
        # Parameters, quoted separators, and empty items.
        ("application/x-ndjson;charset=utf-8", True),
        ("application/x-ndjson;charset=utf-8;q=0.5, application/json", False),
        ("application/json, application/json;version=1;q=0, application/x-ndjson;q=0.5", False),
        ("application/json;version=1;q=0, application/json, application/x-ndjson;q=0.5", False),
        ('application/json;profile="a, application/x-ndjson, b"', False),
        ('application/json;q=0.5;profile=";q=1", application/x-ndjson;q=0.7', True),
        (", application/x-ndjson,,", True),
        ("application/x-ndjson;", True),
        ('"', False),
    ],
)
def test_the_accept_header_selects_the_format(
    client: httpx.Client, organisation: str, accept: str, lines: bool
) -> None:
    response = client.get(f"/api/appointments?org={organisation}", headers={"Accept": accept})
    assert (response.status_code, response.content) == (200, b"" if lines else b"[]")
    assert response.headers["content-type"] == ("application/x-ndjson" if lines else "application/json")


@pytest.mark.parametrize(
    ("accept", "lines"),
    [
        (["application/json;q=0.5", "application/x-ndjson"], True),
        (["application/x-ndjson;q=0.5", "application/json"], False),
        (["text/html", "application/xml", "application/x-ndjson"], True),
        (["*/*", "application/json;q=0"], True),
    ],
)
def test_the_accept_header_may_come_on_several_lines(
    client: httpx.Client, organisation: str, accept: list[str], lines: bool
) -> None:
    response = client.get(f"/api/appointments?org={organisation}", headers=[("Accept", line) for line in accept])
    assert (response.status_code, response.content) == (200, b"" if lines else b"[]")


def test_the_etag_changes_with_every_change_of_the_organisation_and_only_then(
    client: httpx.Client, organisation: str
) -> None:
    url = f"/api/appointments?org={organisation}"

    def tag() -> str:
        response = client.get(url)
        assert response.headers["vary"] == "Accept"
        return response.headers["etag"]

    tags = [tag()]
    for change in ({}, {"updatedAt": LATER}, {"updatedAt": "2020-09-30", "cancelled": True}):
        assert_accepted(post(client, organisation, **change))
        tags.append(tag())
    assert len(set(tags)) == 4
    assert all(each.startswith('W/"') for each in tags)
    post(client, organisation)
    post(client, organisation + "-other")
    assert tag() == tags[-1]
    assert client.get(url, headers=LINES).headers["etag"] != tags[-1]


@pytest.mark.parametrize("more", ["", "&limit=1", "&asOf=2999-01-01", "&includeCancelled=true&id=a-1"])
def test_an_unchanged_list_is_not_sent_again(client: httpx.Client, organisation: str, more: str) -> None:
    post(client, organisation)
    url = f"/api/appointments?org={organisation}{more}"
    tag = client.get(url).headers["etag"]
    for tags in (tag, tag.removeprefix("W/"), f'"x", {tag}', "*"):
        response = client.get(url, headers={"If-None-Match": tags})
        assert (response.status_code, response.content) == (304, b"")
        assert response.headers["etag"] == tag
    assert client.get(url, headers={"If-None-Match": '"x"'}).status_code == 200
    post(client, organisation, updatedAt=LATER)
    changed = client.get(url, headers={"If-None-Match": tag})
    assert (changed.status_code, len(changed.json())) == (200, 1)
    refused = client.get(url + "&at=x", headers={"If-None-Match": tag})
    assert_problem(refused, 400, "INVALID_DATE_FORMAT", ["at"])


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        (["{tag}", '"x"'], 304),
        (['"x", "y"', "{tag}"], 304),
        (['"x, y", {tag}'], 304),
        (['W/"x",{tag},"y"'], 304),
        (['"x,{bare},y"'], 200),
        (['W/"{bare}-gzip"'], 304),
        (['"{bare}-gzip"'], 304),
        (['W/"{bare}--gzip"'], 304),
        (['W/"{bare};gzip"'], 304),
        (['"{bare};gz"'], 304),
        (['"x", W/"{bare}-br"'], 304),
        (['W/"{bare}-zstd"'], 304),
        (['W/"{bare}-gzip-gzip"'], 304),
        (['W/"{bare}-other"'], 200),
        (['W/"{bare}-gzipped"'], 200),
        (['W/"{bare}x"'], 200),
        (['W/"x{bare}"'], 200),
        (["{bare}"], 200),
        (['"'], 200),
        (["*"], 304),
        (['"*"'], 200),
    ],
)
def test_the_tag_is_found_among_those_of_other_answers_and_with_the_suffix_of_a_coding(
    client: httpx.Client, organisation: str, lines: list[str], status: int
) -> None:
    """Apache, Caddy, Jetty and LiteSpeed append the coding when they compress."""
    post(client, organisation)
    url = f"/api/appointments?org={organisation}"
    tag = client.get(url).headers["etag"]
    bare = tag.removeprefix("W/").strip('"')
    given = [("If-None-Match", line.format(tag=tag, bare=bare)) for line in lines]
    assert client.get(url, headers=given).status_code == status
    calendar = f"/api/appointments.ics?org={organisation}"
    of_calendar = client.get(calendar).headers["etag"]
    given = [("If-None-Match", line.format(tag=of_calendar, bare=of_calendar[3:-1])) for line in lines]
    assert client.get(calendar, headers=given).status_code == status


def test_a_list_carries_the_cursor_of_the_last_change(client: httpx.Client, organisation: str) -> None:
    url = f"/api/appointments?org={organisation}"
    assert client.get(url).headers["x-changes-cursor"] == "0"
    cursors = []
    for day in (1, 2, 3):
        post(client, organisation, id=f"a-{day}", start=f"2020-10-0{day}", end=f"2020-10-0{day} 01:00")
        cursors.append(client.get(url + "&at=1999-01-01").headers["x-changes-cursor"])
    assert [row["cursor"] for row in changes_one_by_one(client, organisation)] == cursors
    assert {page.headers["x-changes-cursor"] for page in follow_links(client, url + "&limit=1")} == {cursors[-1]}
    assert "x-changes-cursor" not in client.get(url + "&asOf=2999-01-01").headers


def changes_one_by_one(client: httpx.Client, organisation: str) -> Iterator[dict[str, Any]]:
    cursor = ""
    while (page := client.get(CHANGES, params={"org": organisation, "limit": 1, "after": cursor}).json())["changes"]:
        yield page
        cursor = page["cursor"]


LONG_LIST_ROWS = 2 * ROWS_MAX + 5
FILL_LONG_LIST = f"""
insert into appointments
    (bucket, org_id, external_id, during, payload_created_at, payload_updated_at, received_at, version)
select organisation_bucket(org_id), org_id, '"' || n,
    tstzrange(start, start + interval '1 hour'), start, start, start, 1
from (
    select n, timestamptz '2000-01-01Z' + n * interval '1 hour' as start from generate_series(1, {LONG_LIST_ROWS}) as n
) as s, (values (%s)) as organisations (org_id)
"""


@pytest.fixture
def long_list(service: ServiceProcess, organisation: str) -> None:
    query(service.database_url, FILL_LONG_LIST, organisation)


@pytest.mark.usefixtures("long_list")
@pytest.mark.parametrize("more", ["", "&includeCancelled=true"])
def test_a_long_list_is_streamed_completely_and_in_order(client: httpx.Client, organisation: str, more: str) -> None:
    url = f"/api/appointments?org={organisation}{more}"
    response = client.get(url)
    assert response.headers["content-type"] == "application/json"
    assert response.headers["transfer-encoding"] == "chunked"
    assert {"etag", "x-changes-cursor", "x-request-id"} <= response.headers.keys()
    rows = response.json()
    assert ids(rows) == [f'"{number}' for number in range(1, LONG_LIST_ROWS + 1)]
    lines = client.get(url, headers=LINES)
    assert [httpx.Response(200, content=line).json() for line in lines.text.splitlines()] == rows
    assert [row for page in follow_links(client, f"{url}&limit={ROWS_MAX}") for row in page.json()] == rows


@pytest.mark.usefixtures("long_list")
def test_head_of_a_long_list_has_no_body(client: httpx.Client, organisation: str) -> None:
    response = client.head(f"/api/appointments?org={organisation}")
    assert (response.status_code, response.content) == (200, b"")
    assert response.headers["content-type"] == "application/json"
    assert {"etag", "x-changes-cursor", "x-request-id"} <= response.headers.keys()
    assert "content-length" not in response.headers
