"""The bucket of an organisation is the same in Python and in the schema, which refuses any other."""

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from service.database.buckets import BUCKETS, bucket_of
from tests.databases import query

AWKWARD = [
    "default",
    "o",
    "\\",
    "\\\\",
    "\\x41",
    "\\000",
    "'",
    '"',
    "''",
    "%s",
    "ä",
    "é",
    "é",
    "\ufeff",
    "𝔘",
    "a\nb",
    "\x7f" * 255,
]
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=255)


def test_python_and_postgresql_agree(database_url: str) -> None:
    with psycopg.connect(database_url) as session:

        @given(st.lists(NAMES, max_size=100))
        def agree(names: list[str]) -> None:
            statement = (
                "select organisation_bucket(n) from unnest(%s::text[]) with ordinality as a (n, place) order by place"
            )
            found = [bucket for [bucket] in session.execute(statement, [names + AWKWARD])]
            assert found == [bucket_of(name) for name in names + AWKWARD]

        agree()


def test_organisations_are_spread_over_all_buckets() -> None:
    assert {bucket_of(f"org-{number}") for number in range(1_000)} == set(BUCKETS)
    assert len(set(BUCKETS)) == 16


def test_an_appointment_in_another_bucket_is_refused(database_url: str) -> None:
    other = next(bucket for bucket in BUCKETS if bucket != bucket_of("o"))
    insert = """insert into appointments (bucket, org_id, external_id, during, payload_created_at, payload_updated_at,
        received_at, version) values (%s, 'o', 'a', '[2020-01-01,2020-01-02)', now(), now(), now(), 1)"""
    query(database_url, insert, bucket_of("o"))
    try:
        query(database_url, insert, other)
    except psycopg.errors.CheckViolation:
        return
    raise AssertionError("it was written")
