"""The bucket of an organisation is the same in Python and in the schema."""

import psycopg
from hypothesis import given
from hypothesis import strategies as st

from service.database.buckets import BUCKETS, bucket_of

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
