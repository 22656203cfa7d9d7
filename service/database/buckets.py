"""The bucket of an organisation, by which Citus distributes the tables: migrations/0005.buckets.sql says why."""

from collections import defaultdict
from collections.abc import Iterable
from functools import lru_cache
from hashlib import sha256

BUCKETS = (1, 24, 10, 5, 4, 16, 0, 3, 52, 28, 6, 13, 2, 41, 9, 11)


@lru_cache(maxsize=10_000)
def bucket_of(organisation: str) -> int:
    """As the schema's function `organisation_bucket`."""
    return BUCKETS[sha256(organisation.encode()).digest()[0] % len(BUCKETS)]


def key_of(organisation: str) -> tuple[int, str]:
    """The first two parameters of the lists."""
    return bucket_of(organisation), organisation


def by_bucket(organisations: Iterable[str]) -> list[tuple[int, list[str]]]:
    """The organisations of each bucket."""
    found: defaultdict[int, list[str]] = defaultdict(list)
    for organisation in organisations:
        found[bucket_of(organisation)].append(organisation)
    return list(found.items())
