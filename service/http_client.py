"""Clients of other servers: for the keys of an issuer, and for `import` and `export`.

httpx reads the same variables of the environment by itself, but it would send requests for this machine to a proxy,
does not know networks in NO_PROXY, and raises errors of many kinds for values that it cannot use.
"""

from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx

from service.problems import StartError
from service.settings import is_web_url


def client_options(url: str) -> dict[str, Any]:
    """What both clients of httpx take to reach this URL, by HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY, SSL_CERT_FILE
    and SSL_CERT_DIR. Raises StartError if one of them cannot be used."""
    try:
        target = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise StartError(f"The URL is wrong: {error}") from error
    if not is_web_url(url):
        raise StartError("The URL is wrong: expected one like http://127.0.0.1:3000.")
    try:
        certificates = httpx.create_ssl_context()
    except OSError as error:
        raise StartError(f"SSL_CERT_FILE or SSL_CERT_DIR is wrong: {error.strerror or error}.") from error
    return {"proxy": proxy_for(target), "verify": certificates, "trust_env": False}


def proxy_for(target: httpx.URL) -> str | None:
    proxies = getproxies()
    name = next((name for name in (target.scheme, "all") if name in proxies), None)
    if name is None or is_direct(target, proxies.get("no", "")):
        return None
    proxy = proxies[name] if "://" in proxies[name] else f"http://{proxies[name]}"
    if not is_web_url(proxy):
        raise StartError(f"{name.upper()}_PROXY is wrong: expected a URL like http://proxy.example:3128.")
    return proxy


def is_direct(target: httpx.URL, no_proxy: str) -> bool:
    """Whether NO_PROXY names the host, or it is this machine: a proxy would take `localhost` for its own."""
    host = target.host.rstrip(".")
    entries = no_proxy.replace(",", " ").split()
    if "*" in entries or proxy_bypass(f"{host}:{target.port or ''}".rstrip(":"), {"no": ",".join(entries)}):
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    address = getattr(address, "ipv4_mapped", None) or address
    # A service that listens on all addresses (HOST=0.0.0.0) has the unspecified one in its URL.
    return address.is_loopback or address.is_unspecified or is_within(address, entries)


def is_within(address: IPv4Address | IPv6Address, entries: list[str]) -> bool:
    for entry in entries:
        with suppress(ValueError):  # the entry is a name
            if address in ip_network(entry.strip("[]"), strict=False):
                return True
    return False
