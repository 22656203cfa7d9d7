"""A token issuer: its keys, the tokens it signs, and the URL that publishes its public keys."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SECRET = "a secret that is shared, and long enough for HS512: 64 bytes or more"
AUDIENCE, ISSUER = "appointments", "https://issuer.example"
SETTINGS = {"AUTH_AUDIENCE": AUDIENCE, "AUTH_ISSUER": ISSUER}
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
P256 = ec.generate_private_key(ec.SECP256R1())
ED25519 = ed25519.Ed25519PrivateKey.generate()


def claims(*organisations: str, **changes: Any) -> dict[str, Any]:
    """Valid claims for an hour; a claim changed to None is left out."""
    valid = {
        "aud": AUDIENCE,
        "iss": ISSUER,
        "exp": int(time.time()) + 3600,
        "organisations": list(organisations),
        "scope": "appointments:read appointments:write",
    }
    return {name: value for name, value in (valid | changes).items() if value is not None}


def token(
    *organisations: str, key: Any = SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any
) -> str:
    headers = {"kid": kid} if kid else {}
    return jwt.encode(claims(*organisations, **changes), key, algorithm, headers=headers)


def pem(private_key: Any) -> bytes:
    encoded: bytes = private_key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def public_jwk(kid: Any, private_key: Any, **members: Any) -> dict[str, Any]:
    algorithm = {ec.EllipticCurvePrivateKey: "ES256", rsa.RSAPrivateKey: "RS256"}
    name = next((name for kind, name in algorithm.items() if isinstance(private_key, kind)), "EdDSA")
    entry = json.loads(jwt.get_algorithm_by_name(name).to_jwk(private_key.public_key()))
    entry.pop("key_ops", None)
    return {**entry, "kid": kid, **members}


Answer = Callable[[BaseHTTPRequestHandler], None]


class Publisher:
    """Serves `keys` at `url`, or `document` if it is set; while there are no keys it responds with a 500. An `answer`
    takes the place of all that. It can be used as a proxy, too: it serves the same for every address."""

    def __init__(self) -> None:
        self.keys: list[dict[str, Any]] = []
        self.document = b""
        self.answer: Answer | None = None
        self.requests = 0
        self.paths: list[str] = []
        publisher = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                publisher.requests += 1
                publisher.paths.append(self.path)
                if publisher.answer:
                    return publisher.answer(self)
                self.send_response(200 if publisher.keys else 500)
                self.end_headers()
                self.wfile.write(publisher.document or json.dumps({"keys": publisher.keys}).encode())
                return None

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:
                """A client that hangs up is no fault of the test."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"


@contextmanager
def publishing(*keys: dict[str, Any]) -> Iterator[Publisher]:
    publisher = Publisher()
    publisher.keys = list(keys)
    threading.Thread(target=publisher.server.serve_forever, daemon=True).start()
    try:
        yield publisher
    finally:
        publisher.server.shutdown()
        publisher.server.server_close()
