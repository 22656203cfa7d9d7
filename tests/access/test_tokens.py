"""Authentication and authorisation: which tokens are accepted, and what they give access to."""

import base64
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest

from service.settings import Settings
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
    public_jwk,
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
def secured(url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """A service that checks tokens against a shared secret."""
    directory = tmp_path_factory.mktemp("tokens")
    with running_service(directory, DATABASE_URL=url, AUTH_SECRET=SECRET, LOG_LEVEL="debug", **SETTINGS) as started:
        yield started
        log = started.log_file.read_text()
        assert SECRET not in log
        assert "eyJ" not in log  # the beginning of every token
        assert [event for event in started.events() if event["level"] in ("error", "critical")] == []


def bearer(value: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {value}"}


def listed(process: ServiceProcess, value: str, **parameters: str) -> httpx.Response:
    return process.client.get(LIST, params=parameters, headers=bearer(value))


def unsigned(**header: str) -> str:
    parts = [header, claims("clinic")]
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts) + "."


def tampered(value: str) -> str:
    """The token with its claims replaced by claims for every organisation, under the old signature."""
    head, _, signature = value.split(".")
    body = base64.urlsafe_b64encode(json.dumps(claims("*")).encode()).rstrip(b"=").decode()
    return f"{head}.{body}.{signature}"


def with_header(**members: Any) -> str:
    return jwt.PyJWS().encode(json.dumps(claims("clinic")).encode(), SECRET, "HS256", headers=members)


def with_claim(name: str, text: str) -> str:
    """`text`: the value in JSON, or in what passes for it."""
    body = json.dumps(claims("clinic", **{name: None}))
    return jwt.PyJWS().encode(f'{{"{name}": {text}, {body[1:]}'.encode(), SECRET, "HS256")


def with_raw_header(header: object) -> str:
    """Signed, but with a header that PyJWT would not sign."""
    head, body = (
        base64.urlsafe_b64encode(part).rstrip(b"=")
        for part in (json.dumps(header).encode(), json.dumps(claims("clinic")).encode())
    )
    signature = jwt.get_algorithm_by_name("HS256").sign(head + b"." + body, SECRET.encode())
    return b".".join((head, body, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


def hours_from_now(hours: int) -> int:
    return int(time.time()) + hours * 3600


OTHER_TYPES: tuple[Any, ...] = (None, 7, True, [], {})  # than a string
INVALID_TOKENS = {
    "no algorithm": unsigned(alg="none"),
    "no algorithm, in capitals": unsigned(alg="NONE"),
    "no signature": unsigned(alg="HS256"),
    "another key": token("clinic", key="another secret that has at least 32 bytes"),
    "a stronger algorithm than the pinned one": token("clinic", algorithm="HS512"),
    "a key of another kind": token("clinic", key=RSA, algorithm="RS256"),
    "tampered claims": tampered(token("clinic")),
    "truncated": token("clinic")[:-5],
    "expired": token("clinic", exp=hours_from_now(-1)),
    "not valid yet": token("clinic", nbf=hours_from_now(1)),
    "another audience": token("clinic", aud="another"),
    "another issuer": token("clinic", iss="https://another.example"),
    "no audience": token("clinic", aud=None),
    "no issuer": token("clinic", iss=None),
    "no expiry": token("clinic", exp=None),
    "an expiry that is not a number": token("clinic", exp="soon"),
    "a character after the signature": token("clinic") + "x",
    **{
        f"{name}: {text:.20}": with_claim(name, text)
        for name in ("exp", "nbf", "iat")
        for text in ('"7"', '"99999999999"', "true", "null", "[]", "{}", "NaN", "1e999", "-1e999", "9" * 5000)
    },
    **{f"{name}: 400 digits": with_claim(name, "1" * 400) for name in ("nbf", "iat")},
    **{f"{name}: a float in the future": with_claim(name, str(time.time() + 3600.5)) for name in ("nbf", "iat")},
    "an expiry long ago": token("clinic", exp=-(10**400)),
    **{f"a kid that is {kid!r}": with_raw_header({"alg": "HS256", "kid": kid}) for kid in OTHER_TYPES},
    **{f"alg: {alg!r}": with_raw_header({"alg": alg}) for alg in (*OTHER_TYPES, ["HS256"], "")},
    **{
        f"crit: {crit!r}": with_raw_header({"alg": "HS256", "crit": crit, "exp": 1})
        for crit in (None, [], "exp", ["exp"], ["unknown"], [7])
    },
    "an unencoded payload": with_raw_header({"alg": "HS256", "b64": False}),
    "an unencoded payload, declared": with_raw_header({"alg": "HS256", "b64": False, "crit": ["b64"]}),
    "a detached payload": with_header(b64=False),
    "a header that is a list": with_raw_header(["HS256"]),
    "a header that is a number": with_raw_header(7),
    "no header": with_raw_header({}),
    **{
        f"aud: {audience!r}": token("clinic", aud=audience)
        for audience in ([], ["another"], ["appointments", 7], {"appointments": 1}, 7, True, "")
    },
    **{
        f"iss: {issuer!r}": jwt.encode(claims("clinic") | {"iss": issuer}, SECRET)
        for issuer in ("", "https://issuer.example/")
    },
    **{
        f"organisations: {shape!r}": token(organisations=shape)
        for shape in (*OTHER_TYPES[1:3], {}, [None], [["clinic"]])
    },
    **{
        f"scope: {shape!r}": token("clinic", scope=shape)
        for shape in (*OTHER_TYPES[1:3], {}, [1], [["appointments:read"]])
    },
    "30 KB of text": "x" * 30_000,
    "30 KB of dots": "." * 30_000,
    "30 KB, signed by another key": token("clinic", key="another secret that has at least 32 bytes", jti="x" * 20_000),
    "two tokens": f"{token('clinic')} {token('clinic')}",
    "two tokens with a comma": f"{token('clinic')}, Bearer {token('clinic')}",
    "an infinite expiry": jwt.encode(claims("clinic") | {"exp": float("inf")}, SECRET),
    "organisations that are not strings": token(organisations=[1]),
    "organisations that are an object": token(organisations={"clinic": True}),
    "a scope that is a number": token("clinic", scope=7),
    "not a token": "abc",
    "three dots": "...",
    "a claim set that is a list": jwt.PyJWS().encode(b"[]", SECRET, "HS256"),
    "deeply nested claims": jwt.PyJWS().encode(b"[" * 5000, SECRET, "HS256"),
    "not ASCII": "é",
}


@pytest.mark.parametrize("value", INVALID_TOKENS.values(), ids=INVALID_TOKENS.keys())
def test_an_invalid_token_is_rejected(secured: ServiceProcess, value: str) -> None:
    raw: list[tuple[bytes, bytes]] = [(b"Authorization", b"Bearer " + value.encode())]
    for response in (
        secured.client.get(LIST, headers=raw),
        secured.client.post(LIST, json=payload("clinic"), headers=raw),
        secured.client.post(LIST + "/batch", json=[payload("clinic")], headers=raw),
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
        [("Authorization", "")],
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
def test_a_request_without_a_single_bearer_token_is_rejected(
    secured: ServiceProcess, headers: list[tuple[str, str]], path: str
) -> None:
    response = secured.client.get(path, headers=headers)
    assert_problem(response, 401, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"].startswith("Bearer ")


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/api/docs", "/api/openapi.json"])
def test_probes_and_documents_need_no_token(secured: ServiceProcess, path: str) -> None:
    assert secured.client.get(path).status_code == 200


def test_a_token_grants_access_to_its_organisations_only(secured: ServiceProcess) -> None:
    own_token = token("clinic-a", "clinic-b")
    for name in ("clinic-a", "clinic-b"):
        assert_accepted(secured.client.post(LIST, json=payload(name), headers=bearer(own_token)))
        assert [row["orgId"] for row in listed(secured, own_token, org=f" {name} ").json()] == [name]
    for response in (
        secured.client.post(LIST, json=payload("clinic-c"), headers=bearer(own_token)),
        secured.client.post(LIST, json=payload(None), headers=bearer(own_token)),
        listed(secured, own_token, org="clinic-c"),
        listed(secured, own_token),
        listed(secured, own_token, org="*"),
    ):
        assert_problem(response, 403, "FORBIDDEN")
        assert 'error="insufficient_scope"' in response.headers["www-authenticate"]


READ_ROUTES = [
    "/api/appointments?",
    "/api/appointments/versions?id=a-1&",
    "/api/appointments/changes?",
    "/api/appointments.ics?",
    "/api/availability?from=2020-10-10&to=2020-10-11&",
]


@pytest.mark.parametrize("path", READ_ROUTES)
def test_every_read_route_is_limited_to_the_organisations_of_the_token(
    secured: ServiceProcess, organisation: str, path: str
) -> None:
    own_token = token(organisation)
    assert_accepted(secured.client.post(LIST, json=payload(organisation), headers=bearer(own_token)))
    named = secured.client.get(f"{path}org={organisation}", headers=bearer(own_token))
    unnamed = secured.client.get(path.rstrip("?&"), headers=bearer(own_token))
    assert (named.status_code, named.content) == (200, unnamed.content)
    refused = secured.client.get(f"{path}org={organisation}", headers=bearer(token("another")))
    assert_problem(refused, 403, "FORBIDDEN")
    assert "a-1" not in refused.text


def test_the_only_organisation_of_a_token_is_the_default(secured: ServiceProcess) -> None:
    own_token = token("only-one")
    for org_id, status in ((None, "ok"), ("", "ignored-stale"), ("  ", "ignored-stale")):
        assert_accepted(secured.client.post(LIST, json=payload(org_id), headers=bearer(own_token)), status)
    unnamed = payload(None, id="a-2", start="2020-10-10 09:00", end="2020-10-10 09:30")
    del unnamed["orgId"]
    assert_accepted(secured.client.post(LIST, json=unnamed, headers=bearer(own_token)))
    rows = listed(secured, own_token).json()
    assert [(row["orgId"], row["externalId"]) for row in rows] == [("only-one", "a-2"), ("only-one", "a-1")]
    assert_problem(listed(secured, own_token, org="default"), 403, "FORBIDDEN")


@pytest.mark.parametrize("organisations", ["star", ["star"]])
def test_the_organisations_claim_may_be_a_string_or_a_list(secured: ServiceProcess, organisations: object) -> None:
    assert listed(secured, token(organisations=organisations), org="star").status_code == 200


@pytest.mark.parametrize("organisations", ["*", ["*"], ["a", "*"]])
def test_a_star_grants_access_to_all_organisations(secured: ServiceProcess, organisations: object) -> None:
    everything = token(organisations=organisations)
    assert listed(secured, everything, org="whichever").status_code == 200
    assert listed(secured, everything).status_code == 200
    assert secured.client.get("/metrics", headers=bearer(everything)).status_code == 200
    assert_problem(secured.client.get("/metrics", headers=bearer(token("a"))), 403, "FORBIDDEN")


@pytest.mark.parametrize("organisations", [None, [], "", [" "]])
def test_a_token_without_organisations_grants_no_access(secured: ServiceProcess, organisations: object) -> None:
    without_organisations = token(organisations=organisations)
    for parameters in ({}, {"org": "default"}, {"org": "a"}):
        assert_problem(listed(secured, without_organisations, **parameters), 403, "FORBIDDEN")


def test_read_and_write_scopes_are_separate(secured: ServiceProcess) -> None:
    reader, writer = (token("scoped", scope=f"openid appointments:{kind}") for kind in ("read", "write"))
    assert_accepted(secured.client.post(LIST, json=payload("scoped"), headers=bearer(writer)))
    assert len(listed(secured, reader, org="scoped").json()) == 1
    refused = secured.client.post(LIST, json=payload("scoped"), headers=bearer(reader))
    assert_problem(refused, 403, "FORBIDDEN")
    assert 'scope="appointments:write"' in refused.headers["www-authenticate"]
    assert_problem(secured.client.post(LIST + "/batch", json=[], headers=bearer(reader)), 403, "FORBIDDEN")
    assert_problem(listed(secured, writer, org="scoped"), 403, "FORBIDDEN")
    assert_problem(listed(secured, token("scoped", scope=None), org="scoped"), 403, "FORBIDDEN")
    assert listed(secured, token("scoped", scope=["appointments:read"]), org="scoped").status_code == 200


def test_the_items_of_a_batch_are_authorised_one_by_one(secured: ServiceProcess) -> None:
    items = [payload("batch-a"), payload("batch-b"), payload("batch-a", id="a-2"), {}]
    response = secured.client.post(LIST + "/batch", json=items, headers=bearer(token("batch-a")))
    assert response.status_code == 200
    results = response.json()["results"]
    assert [result["status"] for result in results] == ["ok", "invalid", "conflict", "invalid"]
    assert results[1]["problem"]["code"] == "FORBIDDEN"
    assert listed(secured, token("*"), org="batch-b").json() == []


def test_a_forbidden_write_reveals_no_conflict(secured: ServiceProcess) -> None:
    assert_accepted(secured.client.post(LIST, json=payload("secret-org"), headers=bearer(token("secret-org"))))
    refused = secured.client.post(LIST, json=payload("secret-org", id="a-2"), headers=bearer(token("another-org")))
    assert "a-1" not in refused.text
    assert_problem(refused, 403, "FORBIDDEN")


def test_a_token_is_rejected_once_it_has_expired(secured: ServiceProcess) -> None:
    leeway = Settings().auth_leeway_seconds
    short_lived = token("clinic-a", exp=int(time.time()) + 2 - leeway)  # ends in 1 to 2 seconds: `exp` is whole
    assert listed(secured, short_lived, org="clinic-a").status_code == 200
    wait_until(lambda: listed(secured, short_lived, org="clinic-a").status_code == 401)
    problem = assert_problem(listed(secured, short_lived, org="clinic-a"), 401, "UNAUTHENTICATED")
    assert "expired" in problem["detail"]


@pytest.mark.parametrize("changes", [{"iat": 5}, {"nbf": 5}, {"exp": -5}, {"iat": 5.5, "nbf": 5.5, "exp": -4.5}])
def test_the_clock_of_the_issuer_may_differ_by_seconds(secured: ServiceProcess, changes: dict[str, Any]) -> None:
    moved: dict[str, Any] = {name: int(time.time()) + seconds for name, seconds in changes.items()}
    assert listed(secured, token("clinic-a", **moved), org="clinic-a").status_code == 200


@pytest.mark.parametrize("changes", [{"exp": 10**400}, {"exp": 1e300}, {"nbf": -(10**400)}, {"iat": 0.5}])
def test_times_may_be_any_number(secured: ServiceProcess, changes: dict[str, Any]) -> None:
    assert listed(secured, token("clinic-a", **changes), org="clinic-a").status_code == 200


@pytest.mark.parametrize("audience", ["appointments", ["appointments"], ["another", "appointments"]])
def test_the_audience_may_be_a_list(secured: ServiceProcess, audience: object) -> None:
    assert listed(secured, token("clinic-a", aud=audience), org="clinic-a").status_code == 200


@pytest.mark.parametrize("name", ["\0", "a\0b", "\ud800", "x" * 256])
def test_an_organisation_that_no_request_can_mean_grants_no_access(secured: ServiceProcess, name: str) -> None:
    assert_problem(listed(secured, token(name)), 403, "FORBIDDEN")
    refused = secured.client.post(LIST, json=payload(None), headers=bearer(token(name)))
    assert_problem(refused, 403, "FORBIDDEN")
    assert listed(secured, token(name, "clinic-a")).status_code == 200


def test_a_claim_may_have_any_name(url: str, tmp_path: Path) -> None:
    name = 'https://é.example/"€"'
    valid: dict[str, Any] = {name: "clinic"}
    invalid: dict[str, Any] = {name: 7}
    settings = SETTINGS | {"AUTH_SECRET": SECRET, "AUTH_ORGANISATIONS_CLAIM": name}
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        assert listed(process, token(**valid), org="clinic").status_code == 200
        refused = listed(process, token(**invalid))
        assert name in assert_problem(refused, 401, "UNAUTHENTICATED")["detail"]
        assert refused.headers["www-authenticate"].isascii()


def test_the_authentication_scheme_is_case_insensitive(secured: ServiceProcess) -> None:
    own_token = token("case")
    response = secured.client.get(LIST, headers={"Authorization": f"bEARER  {own_token}"})
    assert (response.status_code, response.content) == (200, b"[]")


@pytest.mark.parametrize(
    ("key", "algorithm"), [(RSA, "RS256"), (P256, "ES256"), (ED25519, "EdDSA")], ids=["RS256", "ES256", "EdDSA"]
)
def test_tokens_are_checked_with_a_public_key_file(url: str, tmp_path: Path, key: Any, algorithm: str) -> None:
    file = tmp_path / "key.pem"
    file.write_bytes(pem(key))
    settings = SETTINGS | {"AUTH_PUBLIC_KEY_FILE": str(file), "METRICS_OPEN": "true", "DOCS_OPEN": "false"}
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        assert listed(process, token("a", key=key, algorithm=algorithm)).status_code == 200
        forged = forged_with_public_key(file.read_bytes())
        for invalid_token in (
            forged,
            token("a"),
            token("a", key=OTHER_RSA, algorithm="RS256"),
            token("a", key=RSA, algorithm="PS256"),
        ):
            assert_problem(listed(process, invalid_token), 401, "UNAUTHENTICATED")
        assert process.client.get("/metrics").status_code == 200
        assert_problem(process.client.get("/api/docs"), 401, "UNAUTHENTICATED")
        assert_problem(process.client.get("/api/openapi.json"), 401, "UNAUTHENTICATED")


def forged_with_public_key(public_key: bytes) -> str:
    """Algorithm confusion: an HS256 token whose secret is the public key. PyJWT itself refuses to sign one."""
    head, body = (
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
        for part in ({"alg": "HS256", "typ": "JWT"}, claims("a"))
    )
    message = head + b"." + body
    signature = jwt.get_algorithm_by_name("HS256").sign(message, public_key)
    return (message + b"." + base64.urlsafe_b64encode(signature).rstrip(b"=")).decode()


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing(public_jwk("one", RSA)) as started:
        yield started


def test_published_keys_are_fetched_kept_and_rotated(url: str, tmp_path: Path, publisher: Publisher) -> None:
    settings = SETTINGS | {"AUTH_JWKS_URL": publisher.url, "AUTH_JWKS_SECONDS": "1"}
    old = token("a", key=RSA, algorithm="RS256", kid="one")
    new = token("a", key=P256, algorithm="ES256", kid="two")
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        assert listed(process, old).status_code == 200
        assert listed(process, token("a", key=RSA, algorithm="RS256")).status_code == 200
        for invalid_token in (
            new,
            token("a", key=OTHER_RSA, algorithm="RS256", kid="one"),
            token("a", key=P256, algorithm="ES256", kid="one"),
            token("a", key=SECRET, kid="one"),
        ):
            assert_problem(listed(process, invalid_token), 401, "UNAUTHENTICATED")
        publisher.keys.append(public_jwk("two", P256))
        wait_until(lambda: listed(process, new).status_code == 200)
        assert listed(process, old).status_code == 200
        del publisher.keys[0]  # the issuer withdraws the key
        wait_until(lambda: listed(process, old).status_code == 401)
        assert listed(process, new).status_code == 200
        publisher.keys.clear()  # the issuer is down
        process.wait_for_event("keys not fetched")
        assert listed(process, new).status_code == 200


BROKEN_DOCUMENTS = [b'{"keys": null}', b"[" * 100_000]  # more of them in test_published_keys.py


def test_broken_key_documents_leave_the_keys_in_place_and_refreshing_goes_on(
    url: str, tmp_path: Path, publisher: Publisher
) -> None:
    settings = SETTINGS | {"AUTH_JWKS_URL": publisher.url, "AUTH_JWKS_SECONDS": "1"}
    old, new = token("a", key=RSA, algorithm="RS256", kid="one"), token("a", key=P256, algorithm="ES256", kid="two")
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        for publisher.document in BROKEN_DOCUMENTS:
            asked = publisher.requests
            wait_until(lambda before=asked: publisher.requests >= before + 2)  # type: ignore[misc]
            assert listed(process, old).status_code == 200
        publisher.document = b""
        publisher.keys.append(public_jwk("two", P256))
        wait_until(lambda: listed(process, new).status_code == 200)
        assert [event for event in process.events() if event["event"].startswith("background task")] == []


def test_requests_get_503_until_keys_have_been_fetched(url: str, tmp_path: Path, publisher: Publisher) -> None:
    keys, publisher.keys = publisher.keys, []
    settings = SETTINGS | {"AUTH_JWKS_URL": publisher.url, "AUTH_JWKS_SECONDS": "1"}
    with running_service(tmp_path, DATABASE_URL=url, **settings) as process:
        refused = listed(process, token("a", key=RSA, algorithm="RS256", kid="one"))
        assert_problem(refused, 503, "NOT_READY")
        assert_problem(process.client.get("/readyz"), 503, "NOT_READY")
        publisher.keys = keys
        wait_until(lambda: process.client.get("/readyz").status_code == 200)


def test_unknown_key_ids_do_not_trigger_a_fetch_each(url: str, tmp_path: Path, publisher: Publisher) -> None:
    with running_service(tmp_path, DATABASE_URL=url, AUTH_JWKS_URL=publisher.url, **SETTINGS) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        for number in range(50):
            unknown = token("a", key=OTHER_RSA, algorithm="RS256", kid=f"unknown-{number}")
            assert_problem(listed(process, unknown), 401, "UNAUTHENTICATED")
        assert publisher.requests in (1, 2)  # the fetch at startup, and a refetch if the requests took over 10 s


@pytest.mark.parametrize(
    "entry",
    [
        public_jwk("one", RSA, use="enc"),
        public_jwk("one", RSA, alg="RS512"),
        {"kty": "oct", "kid": "one", "k": "YSBzZWNyZXQgdGhhdCBpcyBzaGFyZWQsIG9mIDMyIGJ5dGVzIGFuZCBtb3Jl"},
        {"kty": "RSA", "kid": "one", "n": "!", "e": "AQAB"},
        {"kid": "one"},
        "one",
    ],
)
def test_an_unusable_published_key_is_ignored(url: str, tmp_path: Path, publisher: Publisher, entry: Any) -> None:
    publisher.keys = [entry, public_jwk("two", P256)]
    with running_service(tmp_path, DATABASE_URL=url, AUTH_JWKS_URL=publisher.url, **SETTINGS) as process:
        wait_until(lambda: process.client.get("/readyz").status_code == 200)
        assert listed(process, token("a", key=P256, algorithm="ES256", kid="two")).status_code == 200
        for invalid_token in (
            token("a", key=RSA, algorithm="RS256", kid="one"),
            token("a", key=RSA, algorithm="RS512", kid="one"),
            token("a", kid="one"),
        ):
            assert_problem(listed(process, invalid_token), 401, "UNAUTHENTICATED")


def test_a_service_without_authentication_logs_it_once_at_startup(url: str, tmp_path: Path) -> None:
    with running_service(tmp_path, DATABASE_URL=url, WORKERS="2") as process:
        assert_accepted(post(process.client, "anybody"))
        assert [event["level"] for event in process.events() if event["event"] == "open"] == ["warning"]


def test_a_service_with_authentication_does_not_log_that_it_is_open(secured: ServiceProcess) -> None:
    assert [event for event in secured.events() if event["event"] == "open"] == []
