"""Published keys: how they are fetched, which are used, and which of them may have signed a token."""

import asyncio
import gzip
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from http.server import BaseHTTPRequestHandler
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448
from jwt.algorithms import OKPAlgorithm
from structlog.testing import capture_logs

from service.access import published_keys, tokens
from service.access.keys import TRIED_MAX
from service.access.tokens import Tokens, open_tokens
from service.problems import ProblemError
from service.settings import Settings
from tests.access.issuer import (
    AUDIENCE,
    ED25519,
    ISSUER,
    OTHER_RSA,
    P256,
    RSA,
    SECRET,
    Answer,
    Publisher,
    claims,
    public_jwk,
    publishing,
    token,
)

ED448 = ed448.Ed448PrivateKey.generate()
P384 = ec.generate_private_key(ec.SECP384R1())
OLD = token("a", key=RSA, algorithm="RS256", kid="one")
NEW = token("a", key=P256, algorithm="ES256", kid="two")
NEW_DOCUMENT = json.dumps({"keys": [public_jwk("two", P256)]}).encode()
LONG = 5_000_000


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("REFRESH_SECONDS", 0.02), ("RETRY_SECONDS", 0.02), ("FETCH_SECONDS_MAX", 0.5)):
        monkeypatch.setattr(published_keys, name, seconds)


@pytest.fixture
def publisher() -> Iterator[Publisher]:
    with publishing(public_jwk("one", RSA)) as started:
        yield started


@asynccontextmanager
async def opened(publisher: Publisher, **changes: Any) -> AsyncIterator[Tokens]:
    settings = {"auth_jwks_url": publisher.url, "auth_audience": AUDIENCE, "auth_issuer": ISSUER} | changes
    async with open_tokens(Settings(**settings)) as checked:
        assert checked
        await eventually(lambda: checked.why_not_ready() is None)
        yield checked


async def eventually(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


async def admits(checked: Tokens, value: str, scheme: str = "Bearer ") -> bool:
    try:
        await checked.admit({"type": "http", "headers": [(b"authorization", (scheme + value).encode())]}, "read")
    except ProblemError as error:
        assert error.problem.code == "UNAUTHENTICATED"
        return False
    return True


def signed(key: Any, algorithm: str, **header: Any) -> str:
    """A token whose algorithm may have a name that PyJWT does not know."""
    jws = jwt.PyJWS()
    for name in ("Ed25519", "Ed448"):
        jws.register_algorithm(name, OKPAlgorithm())
    return jws.encode(json.dumps(claims("a")).encode(), key, algorithm, headers=header)


def without_kid(private_key: Any, **members: Any) -> dict[str, Any]:
    entry = public_jwk("", private_key, **members)
    del entry["kid"]
    return entry


def body(content: bytes = NEW_DOCUMENT, status: int = 200, **headers: str) -> Answer:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return answer


def slow(handler: BaseHTTPRequestHandler) -> None:
    """Each byte is soon followed by the next, but the last comes long after the time limit."""
    body(b"")(handler)
    for byte in NEW_DOCUMENT:
        handler.wfile.write(bytes([byte]))
        time.sleep(0.1)


def endless(handler: BaseHTTPRequestHandler) -> None:
    body(NEW_DOCUMENT)(handler)
    while True:
        handler.wfile.write(b" " * 10_000)


def silent(handler: BaseHTTPRequestHandler) -> None:
    handler.rfile.read(1)  # until the client hangs up


def circular(handler: BaseHTTPRequestHandler) -> None:
    body(status=302, Location=handler.path + "/again")(handler)


def entries(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


UNUSABLE = {
    "null for keys": body(b'{"keys": null}'),
    "an object for keys": body(b'{"keys": {}}'),
    "no keys": body(b"{}"),
    "no entries": body(b'{"keys": []}'),
    "a list": body(b"[]"),
    "a number": body(b"7"),
    "null": body(b"null"),
    "nothing": body(b""),
    "a page": body(b"<html><body>Maintenance</body></html>"),
    "not UTF-8": body(b'{"keys": ["\xff"]}'),
    "UTF-16": body(NEW_DOCUMENT.decode().encode("utf-16")),
    "deep nesting": body(b'{"keys": ' + b"[" * 100_000),
    "deep nesting in an entry": body(b'{"keys": [' + b'{"kid":' * 100_000),
    "entries that are no keys": body(entries(None, "one", 7, True, [], [{}], {}, {"keys": []})),
    "a number for kid": body(entries(public_jwk(7, P256))),
    "a number beyond all limits": body(b'{"keys": [{"kid": 1' + b"0" * 5_000 + b"}]}"),
    "members of other types": body(entries({"kty": "RSA", "n": 5, "e": []}, {"kty": []}, {"kty": "EC", "crv": {}})),
    "too many entries": body(entries(*[public_jwk("two", P256)] * 1_000)),
    "5 MB": body(NEW_DOCUMENT + b" " * LONG),
    "5 MB, compressed": body(gzip.compress(NEW_DOCUMENT + b" " * LONG), Content_Encoding="gzip"),
    "compressed twice": body(gzip.compress(gzip.compress(NEW_DOCUMENT)), Content_Encoding="gzip, gzip"),
    "an encoding that it does not have": body(NEW_DOCUMENT, Content_Encoding="gzip"),
    "a cut compression": body(gzip.compress(NEW_DOCUMENT)[:-20], Content_Encoding="gzip"),
    "an encoding that nobody asked for": body(b"\x0b\x02\x80abc\x03", Content_Encoding="br"),
    "a cut connection": body(NEW_DOCUMENT, Content_Length=str(len(NEW_DOCUMENT) + 1)),
    "one byte after the other": slow,
    "an endless stream": endless,
    "no answer": silent,
    "a status of the client": body(status=404),
    "a redirect without an address": body(status=302),
    "a redirect to another host": body(status=302, Location="http://localhost/keys"),
    "a redirect to another scheme": body(status=308, Location="https://127.0.0.1/keys"),
    "a redirect to a file": body(status=301, Location="file:///etc/passwd"),
    "a redirect to nonsense": body(status=307, Location="http://[/"),
    "a redirect in a circle": circular,
}


@pytest.mark.parametrize("answer", UNUSABLE.values(), ids=UNUSABLE.keys())
async def test_an_unusable_answer_leaves_the_keys_in_place_and_refreshing_goes_on(
    publisher: Publisher, answer: Answer
) -> None:
    async with opened(publisher) as checked:
        with capture_logs() as logs:
            publisher.answer = answer
            await eventually(lambda: any(line["event"] == "keys not fetched" for line in logs))
            assert await admits(checked, OLD)
            assert not await admits(checked, NEW)
        assert [line for line in logs if line["log_level"] not in ("info", "warning")] == []
        assert all(line["cause"] for line in logs)
        publisher.answer, publisher.document = None, NEW_DOCUMENT
        await eventually(lambda: checked.why_not_ready() is None)
        async with asyncio.timeout(30):
            while not await admits(checked, NEW):
                await asyncio.sleep(0.01)


async def test_a_redirect_to_another_port_is_not_followed(publisher: Publisher) -> None:
    with publishing(public_jwk("two", P256)) as other:
        async with opened(publisher) as checked:
            with capture_logs() as logs:
                publisher.answer = body(status=302, Location=other.url)
                await eventually(lambda: any("another origin" in line.get("cause", "") for line in logs))
                assert not await admits(checked, NEW)
        assert other.requests == 0


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_to_the_same_origin_are_followed(publisher: Publisher, status: int, count: int) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        steps = handler.path.count("/next")
        location = handler.path + "/next" if steps else publisher.url + "/next"  # relative, or absolute
        (body() if steps == count else body(b"", status, Location=location))(handler)

    publisher.answer = answer
    async with opened(publisher) as checked:
        assert await admits(checked, NEW)


@pytest.mark.parametrize(
    "answer",
    [
        body(gzip.compress(NEW_DOCUMENT), Content_Encoding="gzip"),
        body(NEW_DOCUMENT, Content_Encoding="utf-8"),  # not an encoding, but servers are configured so
        body(NEW_DOCUMENT, Content_Type="text/html"),
        body(entries(None, 5, {"kid": 10**400}, public_jwk("two", P256))),
        body(b'{"keys": [{"kid": "\xff"}, ' + json.dumps(public_jwk("two", P256)).encode() + b"]}"),
    ],
    ids=["compressed", "a charset as encoding", "another type", "with other entries", "with an entry not in UTF-8"],
)
async def test_an_answer_with_a_usable_key_is_used(publisher: Publisher, answer: Answer) -> None:
    publisher.answer = answer
    async with opened(publisher) as checked:
        assert await admits(checked, NEW)


BY_RSA, BY_P256 = token("a", key=RSA, algorithm="RS256"), token("a", key=P256, algorithm="ES256")
BY_OTHER_RSA = token("a", key=OTHER_RSA, algorithm="RS256")
BY_OTHER_RSA_AS_ONE = token("a", key=OTHER_RSA, algorithm="RS256", kid="one")
RSA_AS_TWO = token("a", key=RSA, algorithm="RS256", kid="two")
RS512 = token("a", key=RSA, algorithm="RS512", kid="one")


@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize(
    ("keys", "accepted", "refused"),
    [
        pytest.param(
            [public_jwk("one", RSA), public_jwk("one", P256)],
            [OLD, token("a", key=P256, algorithm="ES256", kid="one"), BY_RSA, BY_P256],
            [NEW, BY_OTHER_RSA, token("a", key=OTHER_RSA, algorithm="RS256", kid="one")],
            id="two types with one kid",
        ),
        pytest.param(
            [public_jwk("one", RSA, alg="RS256"), public_jwk("one", RSA, alg="RS512")],
            [OLD, RS512],
            [token("a", key=RSA, algorithm="PS256", kid="one")],
            id="two algorithms with one kid",
        ),
        pytest.param(
            [public_jwk("one", OTHER_RSA), public_jwk("one", RSA)],
            [OLD, BY_RSA, BY_OTHER_RSA],
            [RSA_AS_TWO],
            id="two keys of one type with one kid",
        ),
        pytest.param(
            [without_kid(RSA), without_kid(OTHER_RSA), without_kid(P256)],
            [OLD, NEW, BY_RSA, BY_OTHER_RSA, BY_P256, RSA_AS_TWO],
            [token("a", key=P384, algorithm="ES384"), token("a", kid="one"), token("a")],
            id="keys without kid",
        ),
        pytest.param([without_kid(RSA)], [OLD, BY_RSA], [NEW, BY_P256], id="one key, without kid"),
        pytest.param(
            [public_jwk("one", RSA), without_kid(P256)],
            [OLD, NEW, BY_RSA, BY_P256],
            [RSA_AS_TWO, token("a", key=P256, algorithm="ES256", kid="one")],
            id="with and without kid",
        ),
        pytest.param(
            [public_jwk(None, RSA, use=None, alg=None, key_ops=None)],
            [OLD, BY_RSA, RS512],
            [NEW],
            id="null as if absent",
        ),
        pytest.param(
            [public_jwk("one", RSA, key_ops=["verify"]), public_jwk("", P256)],
            [OLD, BY_P256],
            [NEW],
            id="key_ops, and an empty kid",
        ),
    ],
)
async def test_every_key_that_fits_a_token_is_tried(
    publisher: Publisher, keys: list[Any], accepted: list[str], refused: list[str], backwards: bool
) -> None:
    publisher.keys = keys[::-1] if backwards else keys
    async with opened(publisher, auth_algorithms="RS256,RS512,PS256,ES256,ES384") as checked:
        assert [await admits(checked, value) for value in accepted] == [True] * len(accepted)
        assert [await admits(checked, value) for value in refused] == [False] * len(refused)


async def test_a_limited_number_of_keys_is_tried(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    others = [ec.generate_private_key(ec.SECP256R1()) for _ in range(TRIED_MAX)]
    publisher.keys = [without_kid(key) for key in (*others[:-1], P256, others[-1])]
    async with opened(publisher) as checked:
        monkeypatch.setattr(published_keys, "RETRY_SECONDS", 60)
        assert await admits(checked, BY_P256)  # the last one that is tried
        assert not await admits(checked, token("a", key=others[-1], algorithm="ES256"))


@pytest.mark.parametrize(
    ("first", "second", "by_second"),
    [
        (without_kid(RSA), without_kid(OTHER_RSA), BY_OTHER_RSA),
        (public_jwk("one", RSA), public_jwk("one", OTHER_RSA), BY_OTHER_RSA_AS_ONE),
        (public_jwk("two", RSA), public_jwk("one", OTHER_RSA), BY_OTHER_RSA_AS_ONE),
    ],
)
async def test_keys_are_replaced_once_another_one_signs(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, first: Any, second: Any, by_second: str
) -> None:
    monkeypatch.setattr(published_keys, "REFRESH_SECONDS", 600)
    publisher.keys = [first]
    async with opened(publisher) as checked:
        assert await admits(checked, BY_RSA)
        publisher.keys = [second]
        async with asyncio.timeout(30):
            while not await admits(checked, by_second):
                await asyncio.sleep(0.01)


EDDSA = [signed(ED25519, name, kid="ed") for name in ("EdDSA", "Ed25519")]
ED448_TOKENS = [signed(ED448, name, kid="ed") for name in ("EdDSA", "Ed448")]


@pytest.mark.parametrize("setting", ["", "EdDSA", "Ed25519", "Ed25519,EdDSA"])
@pytest.mark.parametrize("alg", [None, "EdDSA", "Ed25519"])
async def test_ed25519_is_another_name_of_eddsa(publisher: Publisher, alg: str | None, setting: str) -> None:
    publisher.keys = [public_jwk("ed", ED25519, alg=alg)]
    async with opened(publisher, auth_algorithms=setting) as checked:
        assert [await admits(checked, value) for value in EDDSA] == [True, True]
        misnamed = (signed(ED25519, "Ed448", kid="ed"), *ED448_TOKENS)
        assert [await admits(checked, value) for value in misnamed] == [False] * 3


@pytest.mark.parametrize("setting", ["EdDSA", "Ed448"])
@pytest.mark.parametrize("alg", [None, "EdDSA", "Ed448"])
async def test_ed448_is_another_name_of_eddsa(publisher: Publisher, alg: str | None, setting: str) -> None:
    publisher.keys = [public_jwk("ed", ED448, alg=alg)]
    async with opened(publisher, auth_algorithms=setting) as checked:
        assert [await admits(checked, value) for value in ED448_TOKENS] == [True, True]
        misnamed = (signed(ED448, "Ed25519", kid="ed"), *EDDSA)
        assert [await admits(checked, value) for value in misnamed] == [False] * 3


@pytest.mark.parametrize(
    ("entry", "cause"),
    [
        (public_jwk("bad", RSA, use="enc"), "use"),
        (public_jwk("bad", RSA, use=["sig"]), "use"),
        (public_jwk("bad", RSA, key_ops=["encrypt"]), "key_ops"),
        (public_jwk("bad", RSA, key_ops=[]), "key_ops"),
        (public_jwk("bad", RSA, key_ops="verify"), "key_ops"),
        (public_jwk("bad", RSA, alg="RS512"), "alg"),
        (public_jwk("bad", RSA, alg="ES256"), "alg"),
        (public_jwk("bad", RSA, alg="HS256"), "alg"),
        (public_jwk("bad", RSA, alg="none"), "alg"),
        (public_jwk("bad", RSA, alg=["RS256"]), "alg"),
        (public_jwk("bad", ED448, alg="Ed25519"), "alg"),
        (public_jwk("bad", P384), "curve"),
        (public_jwk("bad", P256, crv="P-384"), "members"),
        (public_jwk("bad", P256, x="!"), "members"),
        (json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(RSA)) | {"kid": "bad", "key_ops": None}, "private"),
        ({"kty": "oct", "kid": "bad", "k": jwt.utils.base64url_encode(SECRET.encode()).decode()}, "kty"),
        ({"kid": "bad"}, "kty"),
    ],
)
async def test_a_key_that_is_left_out_is_logged_once_with_the_reason(
    publisher: Publisher, entry: dict[str, Any], cause: str
) -> None:
    publisher.keys = [entry, public_jwk("one", RSA)]
    with capture_logs() as logs:
        async with opened(publisher) as checked:
            before = publisher.requests
            await eventually(lambda: publisher.requests > before + 2)
            assert await admits(checked, OLD)
            assert not await admits(checked, token("a", kid="bad"))
            [line] = [line for line in logs if line["event"] == "key ignored"]
            assert line["kid"] == "bad"
            assert cause in line["cause"]
            publisher.keys = [entry | {"use": "another"}, public_jwk("one", RSA)]  # another reason
            await eventually(lambda: len([line for line in logs if line["event"] == "key ignored"]) == 2)


async def test_refreshes_that_bring_the_same_keys_forget_no_token(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = count_checks(monkeypatch)
    publisher.keys = [public_jwk("one", RSA), public_jwk("two", P256)]
    async with opened(publisher) as checked:
        assert await admits(checked, OLD)
        publisher.keys = [public_jwk("two", P256), public_jwk("two", P256), public_jwk("one", RSA, x5t="another")]
        before = publisher.requests
        await eventually(lambda: publisher.requests > before + 2)
        assert await admits(checked, OLD)
        assert len(checks) == 1
        publisher.keys = [public_jwk("two", P256)]
        async with asyncio.timeout(30):
            while await admits(checked, OLD):
                await asyncio.sleep(0.01)


async def test_a_token_is_remembered_however_it_is_sent(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "REMEMBERED_MAX", 2)
    checks = count_checks(monkeypatch)
    async with opened(publisher) as checked:
        values = [OLD, token("b", key=RSA, algorithm="RS256", kid="one")]
        for value in values:
            for scheme in ("Bearer ", "bearer ", "BEARER  ", " Bearer   ", "bEaReR \t"):
                assert await admits(checked, value, scheme)
        assert [await admits(checked, value) for value in values] == [True, True]
        assert len(checks) == 2


def count_checks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Grows by an element with every token that is checked."""
    checks: list[None] = []
    check = Tokens._check

    async def counted(self: Tokens, value: bytes) -> Any:
        checks.append(None)
        return await check(self, value)

    monkeypatch.setattr(Tokens, "_check", counted)
    return checks


async def test_keys_are_fetched_through_a_proxy(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", publisher.url)
    async with opened(publisher, auth_jwks_url="http://issuer.invalid/keys") as checked:
        assert await admits(checked, OLD)
        assert publisher.paths[0] == "http://issuer.invalid/keys"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY"])
async def test_keys_on_this_machine_are_fetched_without_a_proxy(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with opened(publisher) as checked:
        assert await admits(checked, OLD)
