"""The settings of authentication: whether they fit together, and the key they name."""

from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.access.keys import PUBLIC_ALGORITHMS, SECRET_ALGORITHMS, Key, algorithms_of
from service.http_client import client_options
from service.problems import StartError
from service.settings import Settings

SOURCES = ("AUTH_SECRET", "AUTH_PUBLIC_KEY_FILE", "AUTH_JWKS_URL")
PUBLIC_DEFAULT = ("RS256", "ES256", "EdDSA")


def check_key_settings(settings: Settings) -> None:
    """Raises StartError if the settings of authentication do not fit together."""
    given = [name for name in SOURCES if getattr(settings, name.lower())]
    if len(given) > 1:
        raise StartError(f"Settings {', '.join(given)} exclude one another; keep one.")
    for name in ("AUTH_AUDIENCE", "AUTH_ISSUER", "AUTH_ALGORITHMS"):
        value = getattr(settings, name.lower())
        if value and not given:
            raise StartError(f"Setting {name} needs one of {', '.join(SOURCES)}.")
        if given and not value and name != "AUTH_ALGORITHMS":  # which has a default
            raise StartError(f"Setting {name} is missing; {given[0]} needs it.")
    accepted = accepted_algorithms(settings)
    if settings.auth_public_key_file:
        key_of(settings)
    if settings.auth_jwks_url:
        client_options(settings.auth_jwks_url)
    if settings.auth_secret:
        least = max(int(name.removeprefix("HS")) // 8 for name in accepted)  # the digest: RFC 7518, section 3.2
        if len(settings.auth_secret.encode()) < least:
            raise StartError(f"Setting AUTH_SECRET is too short; expected at least {least} bytes.")


def accepted_algorithms(settings: Settings) -> tuple[str, ...]:
    """Algorithms for a secret and for public keys are never mixed. Raises StartError."""
    possible, default = (SECRET_ALGORITHMS, ("HS256",)) if settings.auth_secret else (PUBLIC_ALGORITHMS, PUBLIC_DEFAULT)
    asked = tuple(name.strip() for name in settings.auth_algorithms.split(",") if name.strip())
    if not set(asked) <= set(possible):
        raise StartError(f"Setting AUTH_ALGORITHMS is wrong: expected some of {', '.join(possible)}.")
    return asked or default


def key_of(settings: Settings) -> Key:
    """The secret, or the key in the file. Raises StartError."""
    accepted = accepted_algorithms(settings)
    if settings.auth_secret:
        return Key(None, frozenset(accepted), settings.auth_secret)
    public_key = read_public_key(settings.auth_public_key_file)
    if not (fitting := algorithms_of(public_key, accepted)):
        raise StartError(f"Setting AUTH_PUBLIC_KEY_FILE is wrong: the key fits none of {', '.join(accepted)}.")
    return Key(None, fitting, public_key)


def read_public_key(file: str) -> Any:
    try:
        return load_pem_public_key(Path(file).read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected a public key in PEM"
        raise StartError(f"Setting AUTH_PUBLIC_KEY_FILE is wrong: {reason}.") from error
