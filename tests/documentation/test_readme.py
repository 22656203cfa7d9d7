"""The README: its commands exist, its examples work as pasted, its tables are complete."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service import ROOT
from service.problems import KINDS
from service.settings import Settings
from tests.processes import ServiceProcess, clean_environment, running_service

README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
CODE = re.findall(r"```sh\n.*?```|`[^`\n]+`", README, re.DOTALL)
SHELL = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
CURL = [block for block in SHELL if "curl" in block and "$TOKEN" not in block]
SIGN, WITH_TOKEN = (block for block in SHELL if "TOKEN" in block)


def table_rows(first_cell: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in README.splitlines()
        if re.match(rf"\| {first_cell} \|", line)
    ]


def test_every_make_target_of_the_readme_exists_and_every_target_is_explained() -> None:
    named = re.findall(r"(?:^|[` ])make ([a-z]+)\b", "\n".join(CODE), re.MULTILINE)
    assert set(named) - {"help"} == TARGETS - {"help"}


def test_help_lists_every_target() -> None:
    done = subprocess.run(
        ["make", "help"], cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=30
    )
    assert set(re.findall(r"^  make ([a-z]+)", done.stdout, re.MULTILINE)) == TARGETS
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)
    assert phony is not None
    assert set(phony[1].split()) == TARGETS


def in_environment(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def test_every_setting_is_in_the_table_with_its_default() -> None:
    rows = {name.strip("`"): default.strip("`") for name, default, _ in table_rows("`[A-Z_]+` \\| .*")}
    defaults = {name.upper(): in_environment(getattr(Settings(), name)) for name in Settings.__struct_fields__}
    assert rows == defaults


def test_every_problem_code_is_in_the_table_with_its_status() -> None:
    rows = {code.strip("`"): int(status) for status, code, _ in table_rows("[1-5][0-9]{2} \\| `.*")}
    assert rows == {code: kind.status for code, kind in KINDS.items()}


def test_every_path_named_in_the_readme_exists() -> None:
    for name in re.findall(r"`((?:service|sql|migrations|tests|bench)/[a-z_./]*)`", README):
        assert (ROOT / name).exists(), name


needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")


@pytest.fixture
def answers(service: ServiceProcess, tmp_path: Path) -> list[str]:
    """What each block of curl commands prints, one after another, in organisations of this test."""
    printed = []
    for block in CURL:
        pasted = block.replace("http://127.0.0.1:3000", service.url).replace("clinic-4", tmp_path.name)
        done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.replace(tmp_path.name, "clinic-4"))
    return printed


VARYING = re.compile(r'"(id|receivedAt|cursor)": ?"[^"]*"')


def steady(printed: str) -> list[Any]:
    """The JSON values of the text, one after another, without what differs from run to run."""
    text, values, decoder = VARYING.sub(r'"\1":""', printed), [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


@needs_curl
def test_the_curl_examples_answer_as_shown(answers: list[str]) -> None:
    shown = [steady(block) for block in re.findall(r"```json\n(.*?)```", README, re.DOTALL)]
    *answered, faults = map(steady, answers)
    assert [len(values) for values in answered] == [1, 1, 1, 2, 1, 1, 1]
    assert [values[-1:] for values in answered] == shown
    [listed] = [values for values in answered if len(values) == 2]
    assert listed[0] == listed[1]
    assert [error["field"] for error in faults[0]["errors"]] == ["id", "start", "updatedAt"]


@needs_curl
def test_the_token_of_the_example_opens_its_organisation(database_url: str, tmp_path: Path) -> None:
    names = [*dict.fromkeys(re.findall(r"AUTH_[A-Z]+", SIGN)), "TOKEN"]
    shown = f'{SIGN}\nfor name in {" ".join(names)}; do echo "${{!name}}"; done'
    done = subprocess.run(["bash", "-c", shown], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    values = dict(zip(names, done.stdout.splitlines(), strict=True))
    token = values.pop("TOKEN")
    with running_service(tmp_path, DATABASE_URL=database_url, **values) as service:
        for given, status in ((token, "200"), ("", "401")):
            pasted = WITH_TOKEN.replace("http://127.0.0.1:3000", service.url).replace("curl", "curl -w '%{http_code}'")
            done = subprocess.run(
                ["bash", "-c", f"TOKEN={given}; {pasted}"], capture_output=True, text=True, timeout=30, check=True
            )
            assert done.stdout.endswith(status), done.stdout
