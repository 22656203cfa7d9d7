"""Keys that verify signatures, and which of them may have signed a token."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt import PyJWT
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Struct

SECRET_ALGORITHMS = ("HS256", "HS384", "HS512")
RSA_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
CURVES = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}
# EdDSA is the old name of both others (RFC 9864), so a key for one of them is used under either name.
EDWARDS_ALGORITHMS = ("EdDSA", "Ed25519", "Ed448")
PUBLIC_ALGORITHMS = (*RSA_ALGORITHMS, *CURVES.values(), *EDWARDS_ALGORITHMS)
KEY_TYPES: Mapping[str, Any] = {
    "RSA": RSAAlgorithm,
    "EC": ECAlgorithm,
    "OKP": OKPAlgorithm,
}  # `oct` would be a published secret
TRIED_MAX = 16  # keys that may have signed the same token; each costs a check of the signature


class Decoder(PyJWT):
    """With the names of RFC 9864, which PyJWT does not know yet."""

    def __init__(self) -> None:
        super().__init__()
        for name in EDWARDS_ALGORITHMS[1:]:
            self._jws.register_algorithm(name, OKPAlgorithm())


class Key(Struct, frozen=True):
    """`algorithms`: those it may be used for, under all their names."""

    kid: str | None
    algorithms: frozenset[str]
    value: Any


class UnusableKeyError(Exception):
    """The message says why an entry of a key set cannot be used."""


def candidates(keys: Sequence[Key], kid: str | None, algorithm: str) -> list[Key]:
    """The keys that may have signed a token: those of its `kid`; if there are none, those without a `kid`; if the token
    names none, all of them, those without a `kid` first."""
    named = [key for key in keys if key.kid == kid] if kid is not None else []
    unnamed = [key for key in keys if key.kid is None]
    others = [key for key in keys if key.kid is not None] if kid is None else []
    return [key for key in named or unnamed + others if algorithm in key.algorithms][:TRIED_MAX]


def with_synonyms(algorithms: Collection[str]) -> frozenset[str]:
    """These algorithms, under all names that a token may give them."""
    names = frozenset(algorithms)
    return names.union(EDWARDS_ALGORITHMS) if names.intersection(EDWARDS_ALGORITHMS) else names


def algorithms_of(public_key: object, wanted: Collection[str]) -> frozenset[str]:
    """Those of the wanted algorithms that the key can be used for, under all their names."""
    names = names_of(public_key)
    fitting = names.intersection(wanted)
    return names if fitting and "EdDSA" in names else fitting


def names_of(public_key: object) -> frozenset[str]:
    match public_key:
        case RSAPublicKey():
            return frozenset(RSA_ALGORITHMS)
        case EllipticCurvePublicKey():
            return frozenset(name for curve, name in CURVES.items() if curve == public_key.curve.name)
        case Ed25519PublicKey():
            return frozenset(("EdDSA", "Ed25519"))
        case Ed448PublicKey():
            return frozenset(("EdDSA", "Ed448"))
    return frozenset()


def read_key(entry: Any, accepted: Collection[str]) -> Key:
    """From an entry of a key set (RFC 7517); a member that is null counts as missing. Raises UnusableKeyError."""
    if not isinstance(entry, dict):
        raise UnusableKeyError("it is not an object")
    members = {name: value for name, value in entry.items() if value is not None}
    kid, kind, operations = members.get("kid"), members.get("kty"), members.get("key_ops", ["verify"])
    if kid is not None and not isinstance(kid, str):
        raise UnusableKeyError("its kid is not a string")
    if members.get("use", "sig") != "sig":
        raise UnusableKeyError("its use is not sig")
    if not isinstance(operations, list) or "verify" not in operations:
        raise UnusableKeyError("its key_ops do not include verify")
    if not isinstance(kind, str) or kind not in KEY_TYPES:
        raise UnusableKeyError(f"its kty is none of {', '.join(KEY_TYPES)}")
    if "d" in members:
        raise UnusableKeyError("it is a private key")
    try:
        value = KEY_TYPES[kind].from_jwk(members)
    except Exception as error:  # the members may be wrong in any way
        raise UnusableKeyError("its members are not those of a public key") from error
    algorithms = algorithms_of(value, accepted)
    if "alg" in members:
        algorithms &= algorithms_of(value, [str(members["alg"])])
    if not algorithms:
        raise UnusableKeyError("its alg, or its type and curve, fit no accepted algorithm")
    return Key(kid, algorithms, value)
