"""Sizes: modules stay readable in one go, and the service stays small."""

from pathlib import Path

import pytest

from service import ROOT

MODULE_LINES_MAX = 200
SERVICE_LINES_MAX = 7_100  # the whole service stays below
MODULES = sorted((ROOT / "service").rglob("*.py"))


def lines(module: Path) -> int:
    return len(module.read_text(encoding="utf-8").splitlines())


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(ROOT)))
def test_module_has_at_most_200_lines(module: Path) -> None:
    assert lines(module) <= MODULE_LINES_MAX


def test_service_has_fewer_than_7100_lines() -> None:
    assert sum(lines(module) for module in MODULES) < SERVICE_LINES_MAX
