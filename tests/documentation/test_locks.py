"""The lock files: every package at one version with its hashes, independent of the index it comes from."""

import re
import tomllib

import pytest

from service import ROOT

LOCKS = ["requirements.lock", "requirements-development.lock"]
PINNED = re.compile(
    r"([a-z0-9-]+)(?:\[[a-z,]+\])?==\S+(?: ; [^\\]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+\n(?:    # .*\n)*"
)


@pytest.mark.parametrize("name", LOCKS)
def test_lock_pins_every_package_with_hashes_and_names_no_host(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert PINNED.sub("", text) == ""
    assert "://" not in text


def test_every_dependency_of_the_project_is_locked() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    declared = [project["project"]["dependencies"], project["dependency-groups"]["development"]]
    locked = [set(PINNED.findall((ROOT / name).read_text(encoding="utf-8"))) for name in LOCKS]
    for requirements, packages in zip(declared, locked, strict=True):
        assert {re.split(r"[\[ =<>]", requirement)[0].lower() for requirement in requirements} <= packages
    assert locked[0] <= locked[1]
