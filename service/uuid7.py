"""Ids of appointments."""

from random import getrandbits
from time import time_ns


def uuid7() -> str:
    """A UUID of version 7, 32 hexadecimal digits: milliseconds since 1970, then 74 random bits.
    Source: RFC 9562, section 5.7.

    Ordered by time, so that the primary key's index grows at its end only; and made here, since a
    PostgreSQL without OpenSSL opens /dev/urandom anew for each random one.
    """
    milliseconds = time_ns() // 1_000_000
    # Not secret, so no system call: each process seeds its generator from the system's randomness.
    return f"{milliseconds << 80 | 7 << 76 | getrandbits(12) << 64 | 2 << 62 | getrandbits(62):032x}"
