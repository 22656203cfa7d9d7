"""Inconsistent authentication settings stop the start with a one-line reason."""

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, x25519

from service.access.key_settings import check_key_settings
from service.problems import StartError
from service.settings import Settings
from tests.access.issuer import ED25519, P256, RSA, SECRET, pem

COMPLETE: dict[str, Any] = {"auth_secret": SECRET, "auth_audience": "a", "auth_issuer": "i"}


@pytest.mark.parametrize("changes", [{}, {"auth_algorithms": "HS256, HS512"}])
def test_complete_settings_are_accepted(changes: dict[str, Any]) -> None:
    check_key_settings(Settings(**COMPLETE | changes))
    check_key_settings(Settings())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"auth_audience": ""}, "AUTH_AUDIENCE is missing"),
        ({"auth_issuer": ""}, "AUTH_ISSUER is missing"),
        ({"auth_secret": ""}, "AUTH_AUDIENCE needs one of AUTH_SECRET, AUTH_PUBLIC_KEY_FILE, AUTH_JWKS_URL"),
        ({"auth_jwks_url": "https://issuer.example/keys"}, "AUTH_SECRET, AUTH_JWKS_URL exclude one another"),
        ({"auth_secret": "x" * 31}, "AUTH_SECRET is too short; expected at least 32 bytes"),
        ({"auth_secret": "x" * 63, "auth_algorithms": "HS512"}, "expected at least 64 bytes"),
        ({"auth_algorithms": "RS256"}, "AUTH_ALGORITHMS is wrong: expected some of HS256"),
        ({"auth_algorithms": "none"}, "AUTH_ALGORITHMS is wrong"),
        ({"auth_algorithms": "Ed25519"}, "AUTH_ALGORITHMS is wrong"),
        ({"auth_secret": "", "auth_jwks_url": "https://h/", "auth_algorithms": "HS256"}, "expected some of RS256"),
    ],
)
def test_inconsistent_settings_are_reported(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError, match=message) as caught:
        check_key_settings(Settings(**COMPLETE | changes))
    assert "xxx" not in str(caught.value)


def test_an_unusable_public_key_file_is_reported(tmp_path: Path) -> None:
    file = tmp_path / "key.pem"
    settings = Settings(**COMPLETE | {"auth_secret": "", "auth_public_key_file": str(file)})
    with pytest.raises(StartError, match="AUTH_PUBLIC_KEY_FILE is wrong: No such file"):
        check_key_settings(settings)
    file.write_text("no key")
    with pytest.raises(StartError, match="AUTH_PUBLIC_KEY_FILE is wrong: expected a public key in PEM"):
        check_key_settings(settings)
    for unfit in (x25519.X25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1())):
        file.write_bytes(pem(unfit))
        with pytest.raises(StartError, match="AUTH_PUBLIC_KEY_FILE is wrong: the key fits none of RS256, ES256, EdDSA"):
            check_key_settings(settings)
    for key in (RSA, P256, ED25519):
        file.write_bytes(pem(key))
        check_key_settings(settings)


def test_an_unusable_proxy_for_the_key_url_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "socks5://proxy.example")
    settings = COMPLETE | {"auth_secret": "", "auth_jwks_url": "https://issuer.example/keys"}
    with pytest.raises(StartError, match="HTTPS_PROXY is wrong"):
        check_key_settings(Settings(**settings))
