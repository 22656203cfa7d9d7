"""Swagger UI in a real browser."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Request, expect, sync_playwright

from tests.processes import ServiceProcess, running_service

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


def test_swagger_ui_executes_the_example_post_and_loads_nothing_from_other_hosts(
    browser: Browser, empty_service: ServiceProcess
) -> None:
    page = browser.new_page()
    hosts: set[str] = set()
    failures: list[str] = []

    def note_host(request: Request) -> None:
        if not request.url.startswith("data:"):
            hosts.add(urlsplit(request.url).netloc)

    page.on("request", note_host)
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("console", lambda message: failures.append(message.text) if message.type == "error" else None)
    page.goto(f"{empty_service.url}/api/docs")
    operation = page.locator("#operations-default-putAppointment")
    operation.click()
    operation.get_by_role("button", name="Try it out").click()
    operation.get_by_role("button", name="Execute").click()
    answer = operation.locator(".live-responses-table .response")
    body = answer.locator(".response-col_description .highlight-code").first
    expect(answer.locator(".response-col_status")).to_contain_text("200")
    expect(body).to_contain_text('"status": "ok"')
    assert failures == []
    assert hosts == {urlsplit(empty_service.url).netloc}
