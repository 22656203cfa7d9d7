"""The READMEs: their commands exist, their examples work as pasted, their tables are complete."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service import ROOT
from service.app import routes
from service.problems import KINDS
from service.settings import Settings
from service.web.openapi import document
from tests.processes import ServiceProcess, clean_environment, running_service

README_LINES_MAX = 200
SETTINGS_MAX = 33
FILES = [ROOT / name / "README.md" for name in ("", "service", "service/contract", "tests", "bench")]
TEXTS = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in FILES}
README = TEXTS["README.md"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.MULTILINE))
# A block of shell commands, and the answer that is shown right after it.
EXAMPLE = re.compile(r"```sh\n(.*?)```\n(?:```json\n(.*?)```)?", re.DOTALL)
PATH = r"`((?!\.)[\w.*-]+(?:/[\w.*-]+)*/?)`"
SUFFIXES = (".py", ".sql", ".toml", ".lua", ".svg", ".md", ".json")
SIGN, WITH_TOKEN = (block for block, _ in EXAMPLE.findall(README) if "TOKEN" in block)

each_readme = pytest.mark.parametrize("name", TEXTS)
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")


def curl_examples(name: str) -> list[tuple[str, str]]:
    return [
        (block, shown) for block, shown in EXAMPLE.findall(TEXTS[name]) if "curl" in block and "$TOKEN" not in block
    ]


def make_targets(text: str) -> set[str]:
    code = re.findall(r"```sh\n.*?```|`[^`\n]+`", text, re.DOTALL)
    return set(re.findall(r"(?:^|[` ])make ([a-z]+)\b", "\n".join(code), re.MULTILINE))


def table_rows(text: str, first_cell: str) -> list[list[str]]:
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if re.match(rf"\| {first_cell} \|", line)
    ]


def test_readme_has_at_most_200_lines() -> None:
    assert len(README.splitlines()) <= README_LINES_MAX


@each_readme
def test_make_targets_in_a_readme_exist(name: str) -> None:
    assert make_targets(TEXTS[name]) <= TARGETS


def test_every_make_target_is_explained() -> None:
    assert make_targets(README) | make_targets(TEXTS["tests/README.md"]) == TARGETS


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


def test_settings_in_the_table_have_the_right_defaults() -> None:
    rows = {name.strip("`"): default.strip("`") for name, default, _ in table_rows(README, "`[A-Z_]+` \\| .*")}
    defaults = {name.upper(): in_environment(getattr(Settings(), name)) for name in Settings.__struct_fields__}
    assert len(rows) > 10
    assert rows.items() <= defaults.items()


def test_there_are_at_most_33_settings() -> None:
    assert len(Settings.__struct_fields__) <= SETTINGS_MAX
    assert f"lists all {len(Settings.__struct_fields__)}" in README


def test_every_problem_code_is_in_the_table_with_its_status() -> None:
    rows = {code.strip("`"): int(status) for status, code, _ in table_rows(README, "[1-5][0-9]{2} \\| `.*")}
    assert rows == {code: kind.status for code, kind in KINDS.items()}


def test_every_route_is_in_the_table() -> None:
    rows = table_rows(README, "`(?:GET|POST) /.*")
    listed = {path for route, *_ in rows for path in re.findall("`(?:GET|POST) (/[^`]*)`", route)}
    assert listed == {route.path for route in routes(Settings()) if not route.path.startswith("/api/docs/")}


def test_every_query_parameter_is_in_the_table_of_routes() -> None:
    for path, operations in document()["paths"].items():
        parameters = [each["name"] for each in operations.get("get", {}).get("parameters", ()) if each["in"] == "query"]
        [row] = table_rows(README, f"[^|]*`(?:GET) {re.escape(path)}`.*") if parameters else [["", "", ""]]
        assert re.findall("`(.*?)`", row[2]) == parameters, path


@each_readme
def test_every_path_named_in_a_readme_exists(name: str) -> None:
    folder = (ROOT / name).parent
    paths = [path for path in re.findall(PATH, TEXTS[name]) if path.endswith(("/", *SUFFIXES)) or starts_at_root(path)]
    missing = [path for path in paths if not any(list(start.glob(path)) for start in (ROOT, folder))]
    assert paths
    assert missing == []


def starts_at_root(path: str) -> bool:
    return path.partition("/")[0] in ("service", "sql", "migrations", "tests", "bench") and "/" in path


@each_readme
def test_every_link_of_a_readme_leads_to_a_file_and_a_heading(name: str) -> None:
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]+))?\)", TEXTS[name]):
        file = (ROOT / name).parent / target if target else ROOT / name
        assert file.exists(), target
        if anchor:
            headings = re.findall("^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings]


def test_benchmark_figures_are_those_of_the_last_run() -> None:
    measured = (ROOT / "bench/results/results.md").read_text(encoding="utf-8")
    table, _, environment = measured.strip().partition("\n\n")
    assert table in TEXTS["bench/README.md"]
    assert environment in TEXTS["bench/README.md"]
    figures = re.findall(r"^\| [WRHO][0-9] \|.*$", README, re.MULTILINE)
    assert figures
    assert set(figures) <= set(table.splitlines())


VARYING = re.compile(r'"(id|receivedAt|cursor)": ?"[^"]*"')


def steady(printed: str) -> list[Any]:
    """The JSON values of the text, one after another, without the members that differ from run to run."""
    text, values, decoder = VARYING.sub(r'"\1":""', printed), [], json.JSONDecoder()
    while text := text.lstrip():
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:]
    return values


@needs_curl
@pytest.mark.parametrize("name", [name for name in TEXTS if curl_examples(name)])
def test_curl_examples_answer_as_shown(name: str, service: ServiceProcess, organisation: str) -> None:
    """In order, in an organisation of this test."""
    for block, shown in curl_examples(name):
        pasted = block.replace("http://127.0.0.1:3000", service.url).replace("clinic-4", organisation)
        done = subprocess.run(["bash", "-c", pasted], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr
        answers = steady(done.stdout.replace(organisation, "clinic-4"))
        assert answers, block
        assert answers == steady(shown), block


@needs_curl
def test_token_of_the_example_opens_its_organisation(database_url: str, tmp_path: Path) -> None:
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
