"""The keys that an issuer publishes: a JSON Web Key Set (RFC 7517) at a URL."""

import asyncio
import zlib
from collections.abc import Sequence
from time import monotonic
from typing import Any

import httpx
import msgspec
import structlog

from service.access.keys import Key, UnusableKeyError, read_key
from service.problems import ProblemError
from service.settings import masked_url

log = structlog.get_logger()

REFRESH_SECONDS = 300
RETRY_SECONDS = 10  # after a failed fetch, and between two fetches for tokens that no key at hand has signed
KEEP_SECONDS_MAX = 86_400  # of keys that the issuer no longer confirms
FETCH_SECONDS_MAX = 5  # for everything from the connection to the last byte, redirects included
REDIRECTS_MAX = 3
DOCUMENT_BYTES_MAX = 1_048_576  # as sent, and again decompressed
KEYS_MAX = 500  # of a document
LOGGED_LENGTH_MAX = 100  # of a kid
NO_KEYS = "The issuer's keys are not available."


class FetchError(Exception):
    """The message says why the issuer's answer is not a key set."""


class KeySet(msgspec.Struct):
    """Its entries as they were sent, so that a faulty one does not harm the others."""

    keys: list[msgspec.Raw]


KEY_SET = msgspec.json.Decoder(KeySet)


class PublishedKeys:
    """Fetched regularly, and for a token that no key at hand has signed. While fetching fails, the keys at hand
    stay in use, for a day at most."""

    def __init__(self, url: str, algorithms: Sequence[str], client: httpx.AsyncClient) -> None:
        self.keys: Sequence[Key] = ()  # another object only if the keys have changed
        self._url, self._algorithms, self._client = url, algorithms, client
        self._ignored: set[bytes] = set()  # entries of the last document
        self._asked_at = self._confirmed_at = -float("inf")
        self._asking = asyncio.Lock()

    async def look_again(self) -> bool:
        """For a token that no key at hand has signed: whether there are other keys now. Fetches them unless the last
        fetch was just now. Raises ProblemError if no keys are available."""
        before = self.keys
        async with self._asking:  # concurrent requests share one fetch
            if self.keys is before and monotonic() > self._asked_at + RETRY_SECONDS:
                await self._fetch()
        if not self.keys:
            raise ProblemError("NOT_READY", NO_KEYS)
        return self.keys is not before

    async def refresh(self) -> None:
        """Runs until it is cancelled."""
        while True:
            async with self._asking:
                fresh = await self._fetch()
            await asyncio.sleep(REFRESH_SECONDS if fresh else min(REFRESH_SECONDS, RETRY_SECONDS))

    async def _fetch(self) -> bool:
        """Whether it succeeded."""
        self._asked_at = monotonic()
        try:
            async with asyncio.timeout(FETCH_SECONDS_MAX):
                document = await download(self._client, self._url)
            keys = self._usable(KEY_SET.decode(document).keys)
        except Exception as error:  # the issuer's answer may be wrong in any way
            log.warning("keys not fetched", url=masked_url(self._url), cause=str(error) or type(error).__name__)
            if self.keys and monotonic() > self._confirmed_at + KEEP_SECONDS_MAX:
                self.keys = ()
            return False
        if len(keys) != len(self.keys) or not all(key in self.keys for key in keys):
            self.keys = keys
        self._confirmed_at = monotonic()
        return True

    def _usable(self, entries: Sequence[msgspec.Raw]) -> Sequence[Key]:
        """The different keys that verify signatures. The other entries are logged, unless they were in the last
        document. Raises FetchError if there is no usable key."""
        if len(entries) > KEYS_MAX:
            raise FetchError(f"more than {KEYS_MAX} keys")
        keys: list[Key] = []
        ignored: set[bytes] = set()
        for entry in map(bytes, entries):
            members: Any = None
            try:
                members = msgspec.json.decode(entry)
                key = read_key(members, self._algorithms)
            except (UnusableKeyError, msgspec.DecodeError, UnicodeDecodeError) as error:
                ignored.add(entry)
                if entry not in self._ignored:
                    kid = str(members.get("kid", ""))[:LOGGED_LENGTH_MAX] if isinstance(members, dict) else ""
                    log.warning("key ignored", kid=kid, cause=str(error))
            else:
                if key not in keys:
                    keys.append(key)
        self._ignored = ignored
        if not keys:
            raise FetchError("no usable key")
        return keys


async def download(client: httpx.AsyncClient, url: str) -> bytes:
    """The body, decompressed. Raises FetchError and what httpx raises."""
    request = client.build_request("GET", url, headers={"Accept-Encoding": "identity"})
    for _ in range(1 + REDIRECTS_MAX):
        response = await client.send(request, stream=True)
        try:
            if response.next_request is None:
                return await read_body(response)
        finally:
            await response.aclose()
        request = response.next_request
        if origin(request.url) != origin(response.url):  # an open redirect must not choose the keys
            raise FetchError(f"redirected to another origin, {request.url.scheme}://{request.url.netloc.decode()}")
    raise FetchError(f"redirected more than {REDIRECTS_MAX} times")


def origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


async def read_body(response: httpx.Response) -> bytes:
    """Decompresses with a limit, which httpx does not: a small answer may otherwise fill the memory."""
    if not response.is_success:
        raise FetchError(f"status {response.status_code}")
    sent = bytearray()
    async for chunk in response.aiter_raw():
        sent += chunk
        check_length(sent)
    if response.headers.get("Content-Encoding", "").lower() not in ("gzip", "x-gzip"):
        return bytes(sent)
    # Some issuers publish a compressed file, and send it so whatever the client accepts.
    body = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(sent, DOCUMENT_BYTES_MAX + 1)
    check_length(body)
    return body


def check_length(body: bytes | bytearray) -> None:
    if len(body) > DOCUMENT_BYTES_MAX:
        raise FetchError(f"longer than {DOCUMENT_BYTES_MAX} bytes")
