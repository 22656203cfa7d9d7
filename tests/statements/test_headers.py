"""The header of each statement's file: its form, and that PostgreSQL reports the same parameters and columns."""

import re

import asyncpg
import pytest

from service import ROOT
from service.database import statements
from service.database.statements import Statement

PARAMETER = re.compile(r"^--   \$(\d+) (\w+(?:\[\])?)  +\S", re.MULTILINE)
COLUMN = re.compile(r"^--   ([a-z]\w+) +(\w+)\b", re.MULTILINE)
SECTIONS = ("Parameters:", "Result", "Lock:", "Errors:", "Indexes:")
ALL = [value for value in vars(statements).values() if isinstance(value, Statement)]


def test_every_sql_file_is_loaded_under_its_own_name() -> None:
    assert sorted(statement.name for statement in ALL) == sorted(path.stem for path in (ROOT / "sql").iterdir())
    for name, value in vars(statements).items():
        if isinstance(value, Statement):
            assert name == value.name.upper()


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: statement.name)
def test_file_follows_the_style(statement: Statement) -> None:
    header = re.split(r"\n(?!--)", statement.text, maxsplit=1)[0]
    assert re.match(r"-- [A-Z][^\n]*\.\n--\n", header), "the first line must be a sentence that says what it does"
    places = [header.index(f"\n-- {section}") for section in SECTIONS]
    assert places == sorted(places)
    code = re.sub(r"--.*|'[^']*'", "", statement.text)
    assert code.count(";") == 1
    assert statement.text.endswith(";\n")
    assert code == code.lower()
    assert "\t" not in code


@pytest.mark.parametrize("statement", ALL, ids=lambda statement: statement.name)
async def test_header_matches_the_parameters_and_columns_reported_by_postgresql(
    statement: Statement, database_url: str
) -> None:
    header = statement.text.split("\nselect ", 1)[0].split("\nwith ", 1)[0]
    parameters, result = header.split("-- Result")
    result = result.split("-- Lock:")[0]
    connection = await asyncpg.connect(database_url)
    try:
        prepared = await connection.prepare(statement.text)
        documented = PARAMETER.findall(parameters)
        assert [int(number) for number, _ in documented] == list(range(1, len(documented) + 1))
        assert [name for _, name in documented] == [parameter.name for parameter in prepared.get_parameters()]
        columns = [(column.name, column.type.name) for column in prepared.get_attributes()]
        assert COLUMN.findall(result) == columns
    finally:
        await connection.close()
