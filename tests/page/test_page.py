"""The chat page in a real browser before a real server of nano."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.page.conftest import PHONE, Watch
from tests.server.test_serve import address_of, serve

pytestmark = pytest.mark.slow
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PASTE = """([name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const carried = new DataTransfer();
  carried.items.add(new File([bytes], name, { type }));
  const event = new ClipboardEvent("paste", { clipboardData: carried, bubbles: true, cancelable: true });
  document.getElementById("message").dispatchEvent(event);
}"""


def say(page: Any, text: str) -> Any:
    """Send a message and wait for the end of its answer, which is given."""
    page.get_by_label("Message", exact=True).fill(text)
    page.keyboard.press("Enter")
    return ended(page)


def ended(page: Any) -> Any:
    page.locator("#send").wait_for()
    answer = page.locator("article.answer").last
    answer.locator("footer").wait_for()
    return answer


def configure(page: Any, **values: object) -> None:
    """Settings as the user would have them."""
    page.evaluate("(values) => localStorage.setItem('qwench.settings', JSON.stringify(values))", values)
    page.reload()
    page.get_by_text("nano is listening.").wait_for()


def bring(page: Any, *turns: Mapping[str, object], title: str = "Brought") -> None:
    """A conversation from a file, opened."""
    document = json.dumps({"id": "brought", "title": title, "changed": 1, "turns": turns}).encode()
    page.get_by_role("button", name="Settings").click()
    given = {"name": "brought.json", "mimeType": "application/json", "buffer": document}
    page.locator("dialog input[type=file]").set_input_files(given)
    page.locator("#notice", has_text="1 of 1 conversations were imported.").wait_for()
    page.keyboard.press("Escape")
    page.locator("#conversations a").first.click()
    page.locator("article").first.wait_for()


def answered(text: str, **more: object) -> dict[str, object]:
    return {"role": "assistant", "model": "nano", "text": text, "thinking": "", "calls": [], "figures": {}, **more}


def test_a_question_is_answered_with_what_it_took(page: Any) -> None:
    answer = say(page, "What is 47 + 38?")
    assert "85" in answer.locator(".prose").inner_text()
    figures = answer.locator(".figures").inner_text()
    assert re.search(r"[\d.,]+ tokens/s · \d+ tokens · \d+ of \d+ reused · [\d.]+ s$", figures)
    assert "of" in page.locator("#window").inner_text()


def test_a_second_question_reuses_the_first_and_both_are_there_after_a_reload(page: Any) -> None:
    say(page, "What is 47 + 38?")
    say(page, f"Copy: {'apple river stone ' * 30}")  # shorter prompts are not worth keeping
    answer = say(page, "Tell me a story.")
    assert int(re.search(r"(\d+) of \d+ reused", answer.locator(".figures").inner_text())[1]) > 0  # type: ignore[index]
    told = answer.locator(".prose").inner_text()
    page.reload()
    page.locator("article.answer").nth(2).wait_for()
    assert page.locator("article.answer").last.locator(".prose").inner_text() == told
    assert page.locator("article.user").first.inner_text() == "What is 47 + 38?"
    assert page.locator("#conversations a[aria-current]").inner_text() == "What is 47 + 38?"


def test_an_answer_comes_piece_by_piece_and_can_be_stopped(page: Any) -> None:
    endless = {"min_tokens": 2000, "temperature": 2, "top_k": 0, "top_p": 1}  # still being written when it is stopped
    configure(page, thinking="off", sampling=endless)
    page.get_by_label("Message", exact=True).fill("Tell me a story.")
    page.keyboard.press("Enter")
    page.locator("article.answer[aria-busy=true] .prose > *").first.wait_for()
    page.keyboard.press("Escape")
    answer = ended(page)
    assert "stopped" in answer.locator(".figures").inner_text()
    page.reload()
    page.locator("article.answer .prose > *").first.wait_for()


def test_thinking_is_folded_and_can_be_stopped(page: Any, address: str) -> None:
    (closing,) = httpx.post(f"{address}/tokenize", json={"content": "</think>"}).json()["tokens"]
    never = {"logit_bias": {str(closing): -100}, "min_tokens": 1200, "temperature": 1.5}  # it would go on and on
    configure(page, thinking="on", budget=None, sampling=never)
    page.get_by_label("Message", exact=True).fill("What is 47 * 38?")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Stop thinking").click()
    answer = ended(page)
    summary = answer.locator("summary")
    assert re.search(r"Thought for .* tokens · ended by you", summary.inner_text())
    thoughts = answer.locator(".thoughts")
    assert not thoughts.is_visible()
    summary.click()
    assert thoughts.inner_text().strip()
    assert answer.locator(".prose").inner_text().strip()


def test_the_budget_is_a_slider_and_reaches_the_model(page: Any) -> None:
    page.locator("#thinking summary").click()
    page.get_by_label("Thinking budget").fill("0")  # the first step: 64 tokens
    page.keyboard.press("Escape")
    assert page.locator("#thinking-now").inner_text() == "Thinking ≤ 64"
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "What is 47 + 38?")
    asked = sent.value.post_data_json
    assert (asked["enable_thinking"], asked["thinking_budget"]) == (True, 64)
    assert page.locator("article.answer summary").inner_text().startswith("Thought for")


def test_a_pasted_picture_goes_along_and_the_server_says_what_came_of_it(page: Any) -> None:
    page.evaluate(PASTE, ["dot.png", "image/png", DOT])
    page.locator("#attachments img").wait_for()
    with page.expect_request("**/v1/chat/completions") as sent:
        answer = say(page, "What is this?")
    part = sent.value.post_data_json["messages"][0]["content"][0]
    assert base64.b64decode(part["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert page.locator("article.user img").get_attribute("alt") == "dot.png"
    said, refused = answer.locator(".prose").inner_text(), answer.locator("> .problem").inner_text()
    assert said or refused.endswith(".")
    page.watch.forgive("400")


def test_a_document_and_a_text_are_attached_and_can_be_taken_off(page: Any) -> None:
    chosen = [
        {"name": "notes.md", "mimeType": "text/markdown", "buffer": b"the key is under the mat"},
        {"name": "paper.pdf", "mimeType": "application/pdf", "buffer": b"%PDF-1.4"},
        {"name": "odd.bin", "mimeType": "application/octet-stream", "buffer": b"\0"},
    ]
    page.locator("#files").set_input_files(chosen)
    page.locator("#notice", has_text="odd.bin is neither picture, PDF, video nor text.").wait_for()
    page.get_by_role("button", name="Remove paper.pdf").click()
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "Where is the key?")
    content = sent.value.post_data_json["messages"][0]["content"]
    assert [part["type"] for part in content] == ["text", "text"]
    assert "under the mat" in content[0]["text"]


HOSTILE = """<img src=x onerror="window.harmed=1"> <script>window.harmed=2</script>

[a link](javascript:window.harmed=3) and ![a picture](http://192.0.2.1/told?who) and <javascript:window.harmed=4>

<iframe src="javascript:parent.harmed=5"></iframe>

$\\href{javascript:window.harmed=6}{x}$ and $\\includegraphics{http://192.0.2.1/x.png}$

| <b onclick="window.harmed=7">head</b> |
|---|
| <svg onload="window.harmed=8"> |

```<img/src=x/onerror=window.harmed=9>
</code></pre><script>window.harmed=10</script>
```
"""


def test_what_the_model_says_is_text_whatever_it_says(page: Any) -> None:
    call = {"id": "<b>", "name": "<img src=x onerror=window.harmed=1>", "arguments": '{"a": "<script>"}'}
    user = {"role": "user", "text": HOSTILE, "files": [{"kind": "image", "name": "<b>", "url": "http://192.0.2.1/y"}]}
    bring(page, user, answered(HOSTILE, thinking=HOSTILE, calls=[call]), title="<img src=x onerror=window.harmed=1>")
    page.wait_for_timeout(300)
    assert page.evaluate("window.harmed") is None
    thread = page.locator("#thread")
    assert thread.locator("script, iframe, svg[onload], [onerror], [onclick], a[href^=javascript]").count() == 0
    assert thread.locator("img").count() == 0
    assert '<img src=x onerror="window.harmed=1">' in page.locator("article.answer .prose").inner_text()
    assert "<iframe" in page.locator("article.answer .prose").inner_text()
    assert page.locator("article.answer .prose a").get_attribute("href") == "http://192.0.2.1/told?who"
    assert page.get_by_label("Title of this conversation").input_value().startswith("<img")


WRITTEN = """# Roots

The roots of $ax^2 + bx + c$ are

$$x = \\frac{-b \\pm \\sqrt{b^2 - 4ac}}{2a}$$

1. **First** choose *a*,
2. then \\(b\\):
   - [x] done
   - `code`

| root | value |
|:--|--:|
| 1 | -0.5 |

```python
def root(a):  # a comment
    return "text" * 2
```

It costs $5 and $6. Tom &amp; Jerry say 1 < 2.
"""


def test_markdown_code_and_formulas_are_shown(page: Any) -> None:
    bring(page, {"role": "user", "text": "Show", "files": []}, answered(WRITTEN))
    prose = page.locator("article.answer .prose")
    prose.locator("math").nth(2).wait_for(state="attached")
    assert prose.locator("div.formula mfrac").count() == 1
    assert prose.locator("math").count() == 3
    assert prose.locator("h2, ol > li > ul > li, td.right, strong, em").count() == 6
    assert prose.locator("code span.keyword").all_inner_texts() == ["def", "return"]
    assert prose.locator("code span.string").inner_text() == '"text"'
    assert "It costs $5 and $6. Tom & Jerry say 1 < 2." in prose.inner_text()


def test_a_tool_is_called_and_its_result_told(page: Any) -> None:
    page.get_by_role("button", name="Settings").click()
    page.get_by_role("button", name="Insert an example").click()
    page.keyboard.press("Escape")
    answer = say(page, "What is the weather in Paris?")
    assert answer.locator(".call .name").inner_text() == "get_weather"
    assert json.loads(answer.locator(".call pre").inner_text()) == {"city": "Paris"}
    answer.get_by_label("Result of get_weather").fill('{"temperature": 21, "sky": "sunny"}')
    answer.get_by_role("button", name="Give the result").click()
    page.locator("article.answer").nth(1).wait_for()
    assert ended(page).locator(".prose").inner_text().strip()
    assert "21" in page.locator(".call .result").inner_text()


def test_a_message_is_edited_and_an_answer_asked_for_again(page: Any) -> None:
    say(page, "What is 47 + 38?")
    page.locator("article.user").hover()
    page.get_by_role("button", name="Edit the message").click()
    page.get_by_label("Message", exact=True).fill("What is 20 + 22?")
    page.keyboard.press("Enter")
    assert "42" in ended(page).locator(".prose").inner_text()
    page.get_by_role("button", name="Answer again").click()
    assert ended(page).locator(".prose").inner_text().strip()
    assert (page.locator("article.user").count(), page.locator("article.answer").count()) == (1, 1)


def test_conversations_are_exported_renamed_and_deleted(page: Any) -> None:
    say(page, "What is 47 + 38?")
    page.get_by_label("Title of this conversation").fill("A sum")
    page.keyboard.press("Tab")
    page.locator("#more summary").click()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Export as Markdown").click()
    assert saved.value.suggested_filename == "A-sum.md"
    told = Path(saved.value.path()).read_text(encoding="utf-8")
    assert told.startswith("# A sum\n\n**You**\n\nWhat is 47 + 38?\n\n**nano**")
    page.on("dialog", lambda dialog: dialog.accept())
    page.locator("#more summary").click()
    page.get_by_role("button", name="Delete this conversation").click()
    page.get_by_text("Nothing said yet.").wait_for()
    page.reload()
    page.get_by_text("Nothing said yet.").wait_for()


def test_everything_is_within_reach_of_the_keyboard(page: Any) -> None:
    page.keyboard.type("What is 47 + 38?")
    page.keyboard.press("Shift+Enter")
    page.keyboard.press("Enter")
    assert "85" in ended(page).locator(".prose").inner_text()
    assert page.evaluate("document.activeElement.id") == "message"
    assert "85" in page.locator("#status").inner_text()
    page.keyboard.press("Alt+n")
    page.get_by_text("nano is listening.").wait_for()


def test_a_server_that_asks_for_a_key_is_given_one(browser: Any) -> None:
    with serve("--port", "0", "--api-key", "open-sesame") as process:
        address = address_of(process)
        page = browser.new_page()
        watch = Watch(page, address)
        page.goto(f"{address}/")
        key = page.get_by_label("API key")
        key.wait_for()
        assert key.evaluate("(field) => field === document.activeElement")
        key.fill("open-sesame")
        key.press("Tab")
        page.get_by_text("nano is listening.").wait_for()
        watch.forgive("401")
        assert watch.wrong == []


@pytest.mark.parametrize(
    "page",
    [{}, {"color_scheme": "dark"}, {"viewport": PHONE, "has_touch": True, "is_mobile": True}],
    ids=["light", "dark", "phone"],
    indirect=True,
)
def test_axe_finds_no_fault(page: Any) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: `make clients`")
    results = {"listening": axe.Axe().run(page)}
    bring_on_any = {"role": "user", "text": "Show", "files": []}
    page.evaluate("document.body.classList.contains('with-sidebar') || document.getElementById('open-sidebar').click()")
    bring(page, bring_on_any, answered(WRITTEN, thinking="Let me see.", figures={"thoughtSeconds": 1, "tokens": 3}))
    page.locator("article.answer summary").click()
    results["answered"] = axe.Axe().run(page)
    page.locator("#thinking summary").click()
    results["thinking"] = axe.Axe().run(page)
    page.keyboard.press("Escape")
    page.evaluate("document.getElementById('open-settings').click()")
    results["settings"] = axe.Axe().run(page)
    found = [
        (name, fault["impact"], fault["id"], [node["html"][:100] for node in fault["nodes"]])
        for name, result in results.items()
        for fault in result.response["violations"]
    ]
    assert found == []
