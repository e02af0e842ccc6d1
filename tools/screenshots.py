"""Makes the pictures of the chat page in docs/: a real browser before a real server of nano, desktop and phone.

`python tools/screenshots.py`; needs playwright (`make clients`) and Chromium.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

DOCS = Path(__file__).resolve().parents[1] / "docs"
QUESTIONS = ("What is 347 + 586?", "What is 528 + 164?")
SHOWN = """The roots of $ax^2 + bx + c$ are

$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$

so a small function has them all:

```python
def roots(a, b, c):
    d = (b * b - 4 * a * c) ** 0.5  # real or complex
    return (-b + d) / (2 * a), (-b - d) / (2 * a)
```

| a | b | c | roots |
|--:|--:|--:|:--|
| 1 | −3 | 2 | 2 and 1 |
| 1 | 0 | 1 | i and −i |
"""


def main() -> int:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        print("screenshots: no chromium on this machine; install it with your package manager.", file=sys.stderr)
        return 1
    command = [sys.executable, "-m", "qwench", "serve", "nano", "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stderr is not None
        address = next(found[1] for line in server.stderr if (found := re.search(r"listens on (http://\S+)", line)))
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            desktop(browser, address)
            phone(browser, address)
        finally:
            browser.close()
            server.terminate()
    return 0


def desktop(browser: Any, address: str) -> None:
    page = opened(browser, address, {"width": 1180, "height": 760}, "light")
    bring(page, "Roots of a polynomial", "Which roots has a quadratic, and how do I compute them?", SHOWN)
    ask(page, address)
    keep(page, "page-desktop")
    page.locator("#conversations a", has_text="Roots").click()
    page.locator("math").first.wait_for()
    page.emulate_media(color_scheme="dark")
    keep(page, "page-formulas")


def phone(browser: Any, address: str) -> None:
    page = opened(browser, address, {"width": 390, "height": 760}, "light")
    ask(page, address)
    keep(page, "page-phone")


def opened(browser: Any, address: str, viewport: dict[str, int], scheme: str) -> Any:
    context = browser.new_context(
        viewport=viewport, color_scheme=scheme, device_scale_factor=2, reduced_motion="reduce"
    )
    page = context.new_page()
    page.goto(address)
    page.get_by_text("nano is listening.").wait_for()
    page.evaluate("localStorage.setItem('qwench.settings', JSON.stringify({thinking: 'on', budget: 512}))")
    page.reload()
    page.get_by_text("nano is listening.").wait_for()
    return page


def ask(page: Any, address: str) -> None:
    """A fresh conversation with nano, its last thinking unfolded."""
    page.goto(f"{address}/#")
    for number, question in enumerate(QUESTIONS):
        page.get_by_label("Message", exact=True).fill(question)
        page.keyboard.press("Enter")
        page.locator("article.answer footer").nth(number).wait_for()
        page.locator("#send").click(trial=True)
    page.locator("article.answer summary").first.click()
    page.locator("#thread").evaluate("(thread) => { thread.scrollTop = 0; }")


def bring(page: Any, title: str, question: str, answer: str) -> None:
    """A conversation that was had elsewhere."""
    said = {"role": "user", "text": question, "files": []}
    told = {"role": "assistant", "model": "nano", "text": answer, "thinking": "", "calls": [], "figures": {}}
    document = {"id": "brought", "title": title, "changed": 1000 * (time.time() - 60), "turns": [said, told]}
    given = {"name": "brought.json", "mimeType": "application/json", "buffer": json.dumps(document).encode()}
    page.get_by_role("button", name="Settings").click()
    page.locator("dialog input[type=file]").set_input_files(given)
    page.locator("#notice", has_text="1 of 1 conversations were imported.").wait_for()
    page.keyboard.press("Escape")
    page.reload()
    page.get_by_text("nano is listening.").wait_for()


def keep(page: Any, name: str) -> None:
    path = DOCS / f"{name}.webp"
    page.mouse.move(0, 0)
    picture = path.with_suffix(".png")
    page.screenshot(path=picture)
    with Image.open(picture) as image:
        image.convert("RGB").save(path, quality=80, method=6)
    picture.unlink()
    print(f"{path.name}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    raise SystemExit(main())
