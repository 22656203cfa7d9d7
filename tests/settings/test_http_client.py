"""Which proxy a client uses, by the variables of the environment that other programs read, too."""

from pathlib import Path

import httpx
import pytest

from service.http_client import client_options
from service.problems import StartError

PROXY = "http://proxy.example:3128"
VARIABLES = [prefix + "_proxy" for prefix in ("http", "https", "all", "no")] + ["SSL_CERT_FILE", "SSL_CERT_DIR"]


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def proxy_of(url: str) -> str | None:
    options = client_options(url)
    httpx.Client(**options).close()
    proxy: str | None = options["proxy"]
    return proxy


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("value", [PROXY, "proxy.example:3128"])
def test_the_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    assert proxy_of("http://issuer.example/keys") == PROXY
    assert proxy_of("https://issuer.example/keys") == (PROXY if name.lower() == "all_proxy" else None)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST",
        "localhost.",
        "api.localhost",
        "127.0.0.1",
        "127.8.9.10",
        "[::1]",
        "[0:0:0:0:0:0:0:1]",
        "[::ffff:127.0.0.1]",
        "0.0.0.0",
        "[::]",
    ],
)
def test_this_machine_is_reached_without_a_proxy(monkeypatch: pytest.MonkeyPatch, scheme: str, host: str) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "nonsense://")
    assert proxy_of(f"{scheme}://{host}:3000") is None
    assert proxy_of(f"{scheme}://{host}") is None


@pytest.mark.parametrize(
    ("host", "no_proxy", "direct"),
    [
        ("issuer.example", "*", True),
        ("issuer.example", "other, *", True),
        ("issuer.example", "issuer.example", True),
        ("issuer.example", "other, ISSUER.example ", True),
        ("issuer.example", "other issuer.example", True),
        ("issuer.example", "example", True),
        ("issuer.example", ".example", True),
        ("issuer.example", "issuer.example:8080", True),
        ("issuer.example", "issuer.example:80", False),
        ("issuer.example", "suer.example", False),
        ("issuer.example", "127.0.0.1,localhost,::1", False),
        ("issuer.example", "[::1],/,10.0.0.0/99,:,,", False),
        ("10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.0.0.0/8", True),
        ("11.1.2.3", "10.0.0.0/8", False),
        ("[fd00::7]", "fd00::/8", True),
        ("[fd00::7]", "[fd00::7]", True),
        ("[fd00::7]", "fd00::8", False),
        ("localhost.example", "", False),
        ("127.0.0.1.example", "", False),
    ],
)
def test_no_proxy_names_hosts_and_networks(
    monkeypatch: pytest.MonkeyPatch, host: str, no_proxy: str, direct: bool
) -> None:
    monkeypatch.setenv("ALL_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", no_proxy)
    assert proxy_of(f"https://{host}:8080/keys") == (None if direct else PROXY)


@pytest.mark.parametrize(
    "value", ["socks5://proxy:1", "nonsense://x", "http://", "http://[::1", "http://h:x", "h:99999"]
)
def test_an_unusable_proxy_is_reported(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", value)
    with pytest.raises(StartError, match="HTTP_PROXY is wrong: expected a URL"):
        client_options("http://issuer.example/keys")


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_unusable_certificates_are_reported(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "certificates.pem"
    if content:
        file.write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(file))
    with pytest.raises(StartError, match="SSL_CERT_FILE or SSL_CERT_DIR is wrong: "):
        client_options("https://issuer.example/keys")


@pytest.mark.parametrize(
    "url", ["http://h:x", "http://[::1", "http://h\n/", "h:1", "ftp://h", f"http://{'a' * 64}", "http://a..b"]
)
def test_an_unusable_url_is_reported(url: str) -> None:
    with pytest.raises(StartError, match="The URL is wrong: "):
        client_options(url)
