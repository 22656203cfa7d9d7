"""What the HTTP parser leaves to the server about the head of a request (RFC 9112)."""

import re
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import unquote

import httptools

from service.problems import ProblemError

Headers = Iterable[tuple[bytes, bytes]]  # names in lower case

VERSIONS = {"1.1", "1.0", "0.9"}  # the parser knows 2.0, too
# RFC 3986, section 3.2.2, but for the comma, which only a proxy that joined several lines would send.
HOST = re.compile(rb"(?:\[[\w:.~%-]+\]|(?:[\w.~!$&'()*+;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?")


def invalid_http(fault: str) -> ProblemError:
    return ProblemError("INVALID_HTTP", f"Expected an HTTP/1.1 request (RFC 9112): {fault}.")


def check_head(method: bytes, version: str, headers: Headers) -> None:
    """Raises ProblemError, a 400."""
    if version not in VERSIONS:
        raise invalid_http(f"HTTP/{version} is not supported")
    if method == b"CONNECT":  # the parser would read nothing after it
        raise invalid_http("CONNECT is not supported")
    hosts = []
    for name, value in headers:
        if name == b"host":
            hosts.append(value)
        elif name == b"transfer-encoding" and (version != "1.1" or value.lower() != b"chunked"):
            raise invalid_http("the only transfer coding is chunked, and only in HTTP/1.1")
    if len(hosts) > 1 or (version == "1.1" and not hosts):
        raise invalid_http(f"there must be one Host header, not {len(hosts)}")
    if hosts and not is_host(hosts[0]):
        raise invalid_http("the Host header is not valid")


@lru_cache
def is_host(value: bytes) -> bool:
    return HOST.fullmatch(value) is not None


def path_of(target: bytes) -> str | None:
    """The path as handlers see it; None if uvicorn cannot read the target."""
    try:
        path = httptools.parse_url(target).path
        return None if path is None else unquote(path.decode("ascii"))
    except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
        return None


def check_target(target: bytes) -> None:
    """Raises ProblemError, a 400, if uvicorn cannot read the target."""
    if path_of(target) is None:
        raise invalid_http("the request target is not valid")


def head_bytes(method: bytes, target: bytes, headers: Headers) -> int:
    """The size of a head with one space after each colon."""
    return len(method) + len(target) + len("  HTTP/1.1\r\n\r\n") + sum(len(n) + len(value) + 4 for n, value in headers)


def without_upgrade(method: bytes, target: bytes, version: str, headers: Headers) -> bytes:
    """The head without the offer of another protocol, and never longer than it was."""
    lines = b"".join([b"%s:%s\r\n" % header for header in headers if header[0] != b"upgrade"])
    return b"%s %s HTTP/%s\r\n%s\r\n" % (method, target, version.encode(), lines)
