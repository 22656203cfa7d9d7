"""The settings of authentication: whether they fit together, and the key they name."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.serialization import load_pem_public_key

from service.problems import StartError
from service.settings import Settings

SOURCES = ("auth_secret", "auth_public_key_file", "auth_jwks_url")
SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
PUBLIC_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
PUBLIC_DEFAULT = ("RS256", "ES256", "EdDSA")


def check_key_settings(settings: Settings) -> None:
    """Raises StartError if the settings of authentication do not fit together."""
    given = [name for name in SOURCES if getattr(settings, name)]
    rest = [name for name in ("auth_audience", "auth_issuer", "auth_algorithms") if getattr(settings, name)]
    if not given and rest:
        raise StartError(f"Setting {rest[0].upper()} needs one of {spelt(SOURCES)}.")
    if len(given) > 1:
        raise StartError(f"Settings {spelt(given)} exclude one another; keep one.")
    if given:
        for name in ("auth_audience", "auth_issuer"):
            if not getattr(settings, name):
                raise StartError(f"Setting {name.upper()} is missing; {given[0].upper()} needs it.")
        accepted = accepted_algorithms(settings)
        if settings.auth_public_key_file:
            read_public_key(settings.auth_public_key_file)
        if settings.auth_secret and len(settings.auth_secret.encode()) < (least := secret_bytes_min(accepted)):
            raise StartError(f"Setting AUTH_SECRET is too short; expected at least {least} bytes.")


def spelt(names: Sequence[str]) -> str:
    return ", ".join(name.upper() for name in names)


def accepted_algorithms(settings: Settings) -> Sequence[str]:
    """Algorithms for a secret and for public keys are never mixed. Raises StartError."""
    possible, default = (SECRET_ALGORITHMS, ("HS256",)) if settings.auth_secret else (PUBLIC_ALGORITHMS, PUBLIC_DEFAULT)
    asked = tuple(name.strip() for name in settings.auth_algorithms.split(",") if name.strip())
    if not set(asked) <= set(possible):
        raise StartError(f"Setting AUTH_ALGORITHMS is wrong: expected some of {', '.join(possible)}.")
    return asked or default


def secret_bytes_min(algorithms: Sequence[str]) -> int:
    """The size of the longest digest. Source: RFC 7518, section 3.2."""
    return max(int(name.removeprefix("HS")) // 8 for name in algorithms)


def read_public_key(file: str) -> Any:
    try:
        return load_pem_public_key(Path(file).read_bytes())
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "expected a public key in PEM"
        raise StartError(f"Setting AUTH_PUBLIC_KEY_FILE is wrong: {reason}.") from error
