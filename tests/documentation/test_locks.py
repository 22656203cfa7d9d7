"""The locks: every package at one version, with its hashes, from wherever it is to be had."""

import re
import tomllib

import pytest

from service import ROOT

LOCKS = ["requirements.lock", "requirements-development.lock"]
PINNED = re.compile(
    r"([a-z0-9-]+)(?:\[[a-z,]+\])?==\S+(?: ; [^\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n(?:    # .*\n)*"
)


@pytest.mark.parametrize("name", LOCKS)
def test_every_version_is_pinned_with_its_hashes_and_no_host_is_named(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert PINNED.sub("", text) == ""
    assert "://" not in text


def test_what_the_project_needs_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    needed = [project["project"]["dependencies"], project["dependency-groups"]["development"]]
    locked = [set(PINNED.findall((ROOT / name).read_text(encoding="utf-8"))) for name in LOCKS]
    for requirements, found in zip(needed, locked, strict=True):
        assert {re.split(r"[\[ =<>]", requirement)[0].lower() for requirement in requirements} <= found
    assert locked[0] <= locked[1]
