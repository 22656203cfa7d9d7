"""Swagger UI in a real browser."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
from playwright.sync_api import Browser, Request, expect, sync_playwright

from service.contract.fields import FIELD_KINDS, ExternalId, Instant, OrganisationId
from tests.instants.test_instants import VALID
from tests.processes import ServiceProcess, running_service
from tests.stripping_proxy import stripping_proxy

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # As root Chromium runs only without its sandbox. The other flags stop its own requests to the internet.
    names = ("background-networking", "component-update", "sync")
    flags = ["--no-first-run", *(f"--disable-{name}" for name in names)]
    sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=flags + sandbox)
        yield launched
        launched.close()


@pytest.fixture
def empty_service(database_url: str, tmp_path: Path) -> Iterator[ServiceProcess]:
    """A service that does not hold the example's appointment yet."""
    with running_service(tmp_path, DATABASE_URL=database_url) as process:
        yield process


@pytest.mark.parametrize("proxied", [False, True], ids=["directly", "behind a proxy that strips a prefix"])
def test_swagger_ui_executes_the_example_post_and_loads_nothing_from_other_hosts(
    browser: Browser, empty_service: ServiceProcess, proxied: bool
) -> None:
    with stripping_proxy(empty_service.url) if proxied else nullcontext(empty_service.url) as url:
        execute_example_post(browser, url)


def execute_example_post(browser: Browser, url: str) -> None:
    page = browser.new_page()
    hosts: set[str] = set()
    failures: list[str] = []

    def note_host(request: Request) -> None:
        if not request.url.startswith("data:"):
            hosts.add(urlsplit(request.url).netloc)

    page.on("request", note_host)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    page.goto(f"{url}/api/docs")
    operation = page.locator("#operations-Appointments-putAppointment")
    operation.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    body = answer.locator(".response-col_description .highlight-code").first
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    expect(body).to_contain_text('"status": "ok"')
    assert failures == []
    assert hosts == {urlsplit(url).netloc}


SPECIAL = ("\ufeff", "\x01", "\u180e", "a\nb\n", "\x85 a\x1c", "\u3000\ufeff\u2028", "\U0001f600" * 255, "ü" * 255)


@pytest.mark.parametrize(
    ("kind", "texts"),
    [
        (ExternalId, SPECIAL),
        (OrganisationId, (*SPECIAL, "", " ", "\x1c\u2003" * 300, "\t" + "\U0001f600" * 255 + "\n")),
        (Instant, tuple(VALID)),
    ],
    ids=["id", "organisation", "instant"],
)
def test_javascript_understands_the_published_patterns(browser: Browser, kind: Any, texts: tuple[str, ...]) -> None:
    for text in texts:
        FIELD_KINDS[kind].parse(text)
    pattern = re.search(r'"pattern":("[^"]*")', msgspec.json.encode(msgspec.json.schema(kind)).decode())
    assert pattern is not None
    refused = "([pattern, texts]) => texts.filter(text => !new RegExp(pattern, 'u').test(text))"
    assert browser.new_page().evaluate(refused, [json.loads(pattern[1]), texts]) == []
