"""A browser before the page: Debian's Chromium, driven by Playwright, and `qwench serve` behind it.

Whatever a test does, the page may ask nobody but its own server, break no rule of its policy and throw no error.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.test_serve import address_of, serve

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium without a window; tests that need one are skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make clients`")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no {', '.join(BROWSERS)} on this machine")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with serve("--port", "0") as process:
        yield address_of(process)


class Watch:
    """What a page did that it must not do."""

    def __init__(self, page: Any, address: str) -> None:
        self.wrong: list[str] = []
        page.on("pageerror", lambda error: self.wrong.append(f"threw {error}"))
        page.on("console", lambda message: self.wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self._asked(request.url, address))

    def _asked(self, url: str, address: str) -> None:
        if not url.startswith((f"{address}/", "data:", "blob:")):
            self.wrong.append(f"asked for {url}")

    def forgive(self, pattern: str) -> None:
        """What a test brings about on purpose."""
        self.wrong = [told for told in self.wrong if not re.search(pattern, told)]


@pytest.fixture
def page(browser: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Any]:
    """The page, loaded and ready; as a phone or in the dark where the test is parametrised so."""
    chosen = {"viewport": DESKTOP, "reduced_motion": "reduce", **getattr(request, "param", {})}
    context = browser.new_context(**chosen)
    context.set_default_timeout(90_000)  # a machine may be busy
    page = context.new_page()
    page.watch = Watch(page, address)
    page.goto(f"{address}/")
    page.get_by_text("nano is listening.").wait_for()
    yield page
    assert page.watch.wrong == []
    context.close()
