"""The chat page as the server gives it: whole, guarded by headers, and from here alone. ``tests/page`` drives it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest

from qwench.server.keys import Key
from qwench.server.site import FILES, FOLDER, HEADERS
from tests.server.conftest import Start
from tests.server.scripted import answering

BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
OWN = sorted(path for path in FOLDER.iterdir() if path.is_file())
SCRIPTS = [path for path in OWN if path.suffix == ".js"]


def named_by(path: Path) -> set[str]:
    """The files that a file of the page asks for, as the browser would."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".js":
        asked = re.findall(r"""(?:from |import\()["']\./([^"']+)["']""", text)
    else:
        asked = re.findall(rf"""(?:src|href)="{FILES}([^"]+)\"""", text)
    return set(asked)


def test_a_browser_gets_the_page_and_others_what_this_is(http: httpx.Client) -> None:
    page = http.get("/", headers=BROWSER)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == http.get("/").headers["vary"] == "accept"
    assert http.get("/").json()["docs"] == "/docs"


def test_every_file_of_the_page_comes_guarded_and_in_its_own_type(http: httpx.Client) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for path in OWN:
        answer = http.get(f"{FILES}{path.name}")
        assert answer.content == path.read_bytes()
        assert answer.headers["content-type"].startswith(types[path.suffix])
        assert HEADERS.items() <= dict(answer.headers).items()


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    rules = dict(rule.split(" ", 1) for rule in HEADERS["content-security-policy"].split("; "))
    assert rules["default-src"] == rules["frame-ancestors"] == rules["base-uri"] == "'none'"
    assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
    assert rules["require-trusted-types-for"] == "'script'"


def test_a_browser_that_has_a_file_is_told_so(http: httpx.Client) -> None:
    first = http.get(f"{FILES}app.js")
    again = http.get(f"{FILES}app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["none.js", "../site.py", "%2e%2e/site.py", "vendor", "", "app.js/", "/etc/passwd"])
def test_nothing_else_is_there(http: httpx.Client, name: str) -> None:
    answer = http.get(f"{FILES}{name}")
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_url"


@pytest.mark.parametrize("path", [path for path in OWN if path.suffix in {".js", ".html"}], ids=lambda path: path.name)
def test_what_a_file_asks_for_is_there_and_nothing_from_elsewhere(path: Path) -> None:
    assert all((FOLDER / name).is_file() for name in named_by(path))
    addresses = set(re.findall(r"\b(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", path.read_text(encoding="utf-8")))
    assert addresses <= {"http://www.w3.org"}, f"{path.name} names {addresses}"


def test_every_file_is_asked_for() -> None:
    asked = {name for path in OWN for name in named_by(path)} | {"index.html"}
    there = {path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.suffix != ".txt"}
    assert {name for name in there if (FOLDER / name).is_file()} == asked


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_no_script_makes_markup_or_code_from_text(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text)


def test_the_page_needs_no_key_and_what_it_asks_for_does(scripted: Start) -> None:
    _, http = scripted(answering("Hello"), keys=(Key.of("k"),))
    assert http.get("/", headers=BROWSER).status_code == 200
    assert http.get(f"{FILES}app.js").status_code == 200
    assert http.get("/").status_code == 401  # which tells the model's name
    assert http.get("/v1/models", headers=BROWSER).status_code == 401


def test_no_answer_is_taken_for_another_type(http: httpx.Client) -> None:
    for path in ("/v1/models", "/health", "/docs", "/nope"):
        assert http.get(path).headers["x-content-type-options"] == "nosniff"
