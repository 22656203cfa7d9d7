"""Who gets in with which token, and what they may use."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from tests.access.issuer import (
    ED25519,
    OTHER_RSA,
    P256,
    RSA,
    SECRET,
    SETTINGS,
    Publisher,
    claims,
    pem,
    published,
    publishing,
    token,
)
from tests.databases import new_database
from tests.http.requests import assert_accepted, assert_problem, payload, post
from tests.processes import ServiceProcess, running_service, wait_until

LIST = "/api/appointments"


@pytest.fixture(scope="module")
def url(server_url: str, template: str) -> Iterator[str]:
    with new_database(server_url, template) as created:
        yield created


@pytest.fixture(scope="module")
def shared(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service for tokens signed with a shared secret."""
    directory = tmp_path_factory.mktemp("shared")
    with running_service(directory, DATABASE_URL=url, AUTH_SECRET=SECRET, LOG_LEVEL="debug", **SETTINGS) as started:
        yield started
        log = started.log_file.read_text()
        assert SECRET not in log
        assert "eyJ" not in log  # how every token begins
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def listed(process: ServiceProcess, value: str, **parameters: str) -> httpx.Response:
    return process.client.get(LIST, params=parameters, headers=bearer(value))


def unsigned(**header: str) -> str:
    parts = [header, claims("clinic")]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def tampered(value: str) -> str:
    """As if it were for every organisation."""
    head, _, signature = value.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims("*")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


def hour_from_now(hours: int) -> int:
    return int(time.time()) + hours * 3600


WRONG = {
    "no algorithm": unsigned(alg="none"),
    "no algorithm, in capitals": unsigned(alg="NONE"),
    "no signature": unsigned(alg="HS256"),
    "another key": token("clinic", key="another secret that has at least 32 bytes"),
    "a stronger algorithm than the pinned one": token("clinic", algorithm="HS512"),
    "a key of another kind": token("clinic", key=RSA, algorithm="RS256"),
    "changed": tampered(token("clinic")),
    "cut": token("clinic")[:-5],
    "expired": token("clinic", exp=hour_from_now(-1)),
    "not valid yet": token("clinic", nbf=hour_from_now(1)),
    "another audience": token("clinic", aud="another"),
    "another issuer": token("clinic", iss="https://another.example"),
    "no audience": token("clinic", aud=None),
    "no issuer": token("clinic", iss=None),
    "no expiry": token("clinic", exp=None),
    "an expiry that is no number": token("clinic", exp="soon"),
    "an expiry as a string": token("clinic", exp=str(hour_from_now(1))) + "x",
    "an endless expiry": jwt.encode(claims("clinic") | {"exp": float("inf")}, SECRET),
    "organisations that are no strings": token(organisations=[1]),
    "organisations that are an object": token(organisations={"clinic": True}),
    "a scope that is a number": token("clinic", scope=7),
    "not a token": "abc",
    "three dots": "...",
    "a claim set that is a list": jwt.PyJWS().encode(b"[]", SECRET, "HS256"),
    "nested deeply": jwt.PyJWS().encode(b"[" * 5000, SECRET, "HS256"),
    "not ASCII": "é",
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_token_is_refused(shared: ServiceProcess, value: str) -> None:
    raw: list[tuple[bytes, bytes]] = [(b"Authorization", b"Bearer " + value.encode())]
    for response in (
        shared.client.get(LIST, headers=raw),
        shared.client.post(LIST, json=payload("clinic"), headers=raw),
        shared.client.post(LIST + "/batch", json=[payload("clinic")], headers=raw),
    ):
        assert_problem(response, 401, "UNAUTHENTICATED")
        assert response.headers["www-authenticate"].startswith('Bearer realm="appointments"')
        assert 'error="invalid_token"' in response.headers["www-authenticate"]


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Authorization", "Basic dTpw")],
        [("Authorization", "Bearer")],
        [("Authorization", token("clinic"))],
        [("X-Authorization", f"Bearer {token('clinic')}")],
        [("Authorization", f"Bearer {token('clinic')}"), ("Authorization", f"Bearer {token('clinic')}")],
    ],
)
@pytest.mark.parametrize(
    "path",
    [
        "/api/appointments",
        "/api/appointments/versions?id=a",
        "/api/appointments/changes",
        "/api/appointments.ics",
        "/api/availability?from=2020-01-01&to=2020-01-02",
        "/metrics",
    ],
)
def test_without_a_token_there_is_no_way_in(shared: ServiceProcess, headers: list[tuple[str, str]], path: str) -> None:
    response = shared.client.get(path, headers=headers)
    assert_problem(response, 401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/api/docs", "/api/openapi.json"])
def test_probes_and_documents_need_no_token(shared: ServiceProcess, path: str) -> None:
    assert shared.client.get(path).status_code == 200


def test_a_token_opens_its_organisations_and_no_other(shared: ServiceProcess) -> None:
    mine = token("clinic-a", "clinic-b")
    for name in ("clinic-a", "clinic-b"):
        assert_accepted(shared.client.post(LIST, json=payload(name), headers=bearer(mine)))
        assert [row["orgId"] for row in listed(shared, mine, org=f" {name} ").json()] == [name]
    for response in (
        shared.client.post(LIST, json=payload("clinic-c"), headers=bearer(mine)),
        shared.client.post(LIST, json=payload(None), headers=bearer(mine)),
        listed(shared, mine, org="clinic-c"),
        listed(shared, mine),
        listed(shared, mine, org="*"),
    ):
        assert_problem(response, 403, "FORBIDDEN")
        assert 'error="insufficient_scope"' in response.headers["www-authenticate"]


READING = [
    "/api/appointments?",
    "/api/appointments/versions?id=a-1&",
    "/api/appointments/changes?",
    "/api/appointments.ics?",
    "/api/availability?from=2020-10-10&to=2020-10-11&",
]


@pytest.mark.parametrize("path", READING)
def test_every_reading_route_keeps_to_the_organisations_of_the_token(
    shared: ServiceProcess, organisation: str, path: str
) -> None:
    mine = token(organisation)
    assert_accepted(shared.client.post(LIST, json=payload(organisation), headers=bearer(mine)))
    named = shared.client.get(f"{path}org={organisation}", headers=bearer(mine))
    unnamed = shared.client.get(path.rstrip("?&"), headers=bearer(mine))
    assert (named.status_code, named.content) == (200, unnamed.content)
    refused = shared.client.get(f"{path}org={organisation}", headers=bearer(token("another")))
    assert_problem(refused, 403, "FORBIDDEN")
    assert "a-1" not in refused.text


def test_the_only_organisation_of_a_token_need_not_be_named(shared: ServiceProcess) -> None:
    mine = token("only-one")
    for org_id in (None, "", "  "):
        assert shared.client.post(LIST, json=payload(org_id), headers=bearer(mine)).status_code == 200
    unnamed = payload(None, id="a-2", start="2020-10-10 09:00", end="2020-10-10 09:30")
    del unnamed["orgId"]
    assert_accepted(shared.client.post(LIST, json=unnamed, headers=bearer(mine)))
    rows = listed(shared, mine).json()
    assert [(row["orgId"], row["externalId"]) for row in rows] == [("only-one", "a-2"), ("only-one", "a-1")]
    assert_problem(listed(shared, mine, org="default"), 403, "FORBIDDEN")


@pytest.mark.parametrize("organisations", ["star", ["star"]])
def test_the_claim_may_be_a_string_or_a_list(shared: ServiceProcess, organisations: object) -> None:
    assert listed(shared, token(organisations=organisations), org="star").status_code == 200


@pytest.mark.parametrize("organisations", ["*", ["*"], ["a", "*"]])
def test_a_star_opens_all(shared: ServiceProcess, organisations: object) -> None:
    everything = token(organisations=organisations)
    assert listed(shared, everything, org="whichever").status_code == 200
    assert listed(shared, everything).status_code == 200
    assert shared.client.get("/metrics", headers=bearer(everything)).status_code == 200
    assert_problem(shared.client.get("/metrics", headers=bearer(token("a"))), 403, "FORBIDDEN")


@pytest.mark.parametrize("organisations", [None, [], "", [" "]])
def test_a_token_for_no_organisation_opens_none(shared: ServiceProcess, organisations: object) -> None:
    nothing = token(organisations=organisations)
    for parameters in ({}, {"org": "default"}, {"org": "a"}):
        assert_problem(listed(shared, nothing, **parameters), 403, "FORBIDDEN")


def test_the_scope_tells_reading_from_writing(shared: ServiceProcess) -> None:
    reader, writer = (token("scoped", scope=f"openid appointments:{kind}") for kind in ("read", "write"))
    assert_accepted(shared.client.post(LIST, json=payload("scoped"), headers=bearer(writer)))
    assert len(listed(shared, reader, org="scoped").json()) == 1
    refused = shared.client.post(LIST, json=payload("scoped"), headers=bearer(reader))
    assert_problem(refused, 403, "FORBIDDEN")
    assert 'scope="appointments:write"' in refused.headers["www-authenticate"]
    assert_problem(shared.client.post(LIST + "/batch", json=[], headers=bearer(reader)), 403, "FORBIDDEN")
    assert_problem(listed(shared, writer, org="scoped"), 403, "FORBIDDEN")
    assert_problem(listed(shared, token("scoped", scope=None), org="scoped"), 403, "FORBIDDEN")
    assert listed(shared, token("scoped", scope=["appointments:read"]), org="scoped").status_code == 200


def test_the_items_of_a_batch_are_admitted_one_by_one(shared: ServiceProcess) -> None:
    items = [payload("batch-a"), payload("batch-b"), payload("batch-a", id="a-2"), {}]
    answer = shared.client.post(LIST + "/batch", json=items, headers=bearer(token("batch-a")))
    results = answer.json()["results"]
    assert [result["status"] for result in results] == ["ok", "invalid", "conflict", "invalid"]
    assert results[1]["problem"]["code"] == "FORBIDDEN"
    assert listed(shared, token("*"), org="batch-b").json() == []


def test_who_may_not_write_learns_nothing_by_trying(shared: ServiceProcess) -> None:
    assert_accepted(shared.client.post(LIST, json=payload("secret-org"), headers=bearer(token("secret-org"))))
    refused = shared.client.post(LIST, json=payload("secret-org", id="a-2"), headers=bearer(token("mine")))
    assert "a-1" not in refused.text
    assert_problem(refused, 403, "FORBIDDEN")


def test_an_expired_token_is_refused_although_it_was_good(shared: ServiceProcess) -> None:
    brief = token("clinic-a", exp=int(time.time()) + 2)
    assert listed(shared, brief, org="clinic-a").status_code == 200
    wait_until(lambda: listed(shared, brief, org="clinic-a").status_code == 401)
    assert "expired" in listed(shared, brief, org="clinic-a").json()["detail"]


def test_the_scheme_is_read_without_case(shared: ServiceProcess) -> None:
    headers = {"Authorization": f"bEARER  {token('clinic-a')}"}
    assert shared.client.get(LIST, headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (P256, "ES256"), (ED25519, "EdDSA")], ids=["RS256", "ES256", "EdDSA"]
)
def test_a_public_key_is_enough_to_check_tokens(url: str, tmp_path: Path, key: Any, algorithm: str) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(key))
    settings = SETTINGS | {"AUTH_PUBLIC_KEY_FILE": str(file), "METRICS_OPEN": "true", "DOCS_OPEN": "false"}
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        assert listed(process, token("a", key=key, algorithm=algorithm)).status_code == 200
        forged = forged_with_public_key(file.read_bytes())
        for wrong in (
            forged,
            token("a"),
            token("a", key=OTHER_RSA, algorithm="RS256"),
            token("a", key=RSA, algorithm="PS256"),
        ):
            assert_problem(listed(process, wrong), 401, "UNAUTHENTICATED")
        assert process.client.get("/metrics").status_code == 200
        assert_problem(process.client.get("/api/docs"), 401, "UNAUTHENTICATED")
        assert_problem(process.client.get("/api/openapi.json"), 401, "UNAUTHENTICATED")


def forged_with_public_key(public_key: bytes) -> str:
    """Signed with the public key as if it were a shared secret; PyJWT would refuse to sign this."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims("a"))
    )
    message = head + b"." + body
    signature = jwt.get_algorithm_by_name("HS256").sign(message, public_key)
    return (message + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing(published("one", RSA)) as started:
        yield started


def test_published_keys_are_fetched_kept_and_rotated(url: str, tmp_path: Path, publisher: Publisher) -> None:
    settings = SETTINGS | {"AUTH_JWKS_URL": publisher.url, "AUTH_JWKS_SECONDS": "1"}
    old = token("a", key=RSA, algorithm="RS256", kid="one")
    new = token("a", key=P256, algorithm="ES256", kid="two")
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        assert listed(process, old).status_code == 200
        assert listed(process, token("a", key=RSA, algorithm="RS256")).status_code == 200
        for wrong in (
            new,
            token("a", key=OTHER_RSA, algorithm="RS256", kid="one"),
            token("a", key=P256, algorithm="ES256", kid="one"),
            token("a", key=SECRET, kid="one"),
        ):
            assert_problem(listed(process, wrong), 401, "UNAUTHENTICATED")
        publisher.keys.append(published("two", P256))
        wait_until(lambda: listed(process, new).status_code == 200)
        assert listed(process, old).status_code == 200
        del publisher.keys[0]  # withdrawn
        wait_until(lambda: listed(process, old).status_code == 401)
        assert listed(process, new).status_code == 200
        publisher.keys.clear()  # the issuer is down
        process.wait_for_event("keys not fetched")
        assert listed(process, new).status_code == 200


def test_while_there_are_no_keys_nobody_is_judged(url: str, tmp_path: Path, publisher: Publisher) -> None:
    keys, publisher.keys = publisher.keys, []
    settings = SETTINGS | {"AUTH_JWKS_URL": publisher.url, "AUTH_JWKS_SECONDS": "1"}
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        refused = listed(process, token("a", key=RSA, algorithm="RS256", kid="one"))
        assert_problem(refused, 503, "NOT_READY")
        assert refused.headers["retry-after"]
        assert_problem(process.client.get("/readyz"), 503, "NOT_READY")
        publisher.keys = keys
        wait_until(lambda: process.client.get("/readyz").status_code == 200)


def test_unknown_keys_do_not_make_the_service_ask_again_and_again(
    url: str, tmp_path: Path, publisher: Publisher
) -> None:
    with running_service(tmp_path, DATABASE_URL=url, AUTH_JWKS_URL=publisher.url, **SETTINGS) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        for number in range(50):
            unknown = token("a", key=OTHER_RSA, algorithm="RS256", kid=f"unknown-{number}")
            assert_problem(listed(process, unknown), 401, "UNAUTHENTICATED")
        assert publisher.asked <= 2


@pytest.mark.parametrize(
    "entry",
    [
        published("one", RSA, use="enc"),
        published("one", RSA, alg="RS512"),
        {"kty": "oct", "kid": "one", "k": "YSBzZWNyZXQgdGhhdCBpcyBzaGFyZWQsIG9mIDMyIGJ5dGVzIGFuZCBtb3Jl"},
        {"kty": "RSA", "kid": "one", "n": "!", "e": "AQAB"},
        {"kid": "one"},
        "one",
    ],
)
def test_a_published_key_that_cannot_serve_is_left_out(
    url: str, tmp_path: Path, publisher: Publisher, entry: Any
) -> None:
    publisher.keys = [entry, published("two", P256)]
    with running_service(tmp_path, DATABASE_URL=url, AUTH_JWKS_URL=publisher.url, **SETTINGS) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        assert listed(process, token("a", key=P256, algorithm="ES256", kid="two")).status_code == 200
        for wrong in (
            token("a", key=RSA, algorithm="RS256", kid="one"),
            token("a", key=RSA, algorithm="RS512", kid="one"),
            token("a", kid="one"),
        ):
            assert_problem(listed(process, wrong), 401, "UNAUTHENTICATED")


def test_an_open_service_says_so_at_the_start(url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=url, WORKERS="2") as process:
        assert post(process.client, "anybody").status_code == 200
        assert len([event for event in process.events() if event["event"] == "open"]) == 1


def test_a_closed_one_does_not(shared: ServiceProcess) -> None:
    assert [event for event in shared.events() if event["event"] == "open"] == []
