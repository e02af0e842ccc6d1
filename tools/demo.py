"""What `make demo` shows: the embedded model greets, adds with and without thinking, calls a tool, reads.

Everything goes through the public parts, engine client and text layer, as the server does it; nothing is scripted but
the questions, the weather and the number in the picture.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from qwench import SamplingParams, __version__
from qwench.config import EngineConfig
from qwench.engine.client import EngineClient
from qwench.errors import QwenchError
from qwench.media.image import fit
from qwench.media.settings import Caps
from qwench.plan.shapes import text_parameters
from qwench.text.model import ModelText
from qwench.text.reading import Reading
from qwench.text.thinking import ThinkingPlan
from qwench.text.tools import read_tools

SUM = (34, 48, 15, 69)
WEATHER_TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
WEATHER = {"temperature": 7, "sky": "rainy"}
NUMBER = 4071
MAX_TOKENS = 400
COLUMN = " " * 10
BOLD, DIM, PLAIN = "\033[1m", "\033[2m", "\033[0m"

Message = dict[str, Any]


@dataclass
class Demo:
    """One model and how its answers are shown. Tokens behind the first of each answer add up, and their seconds."""

    client: EngineClient
    text: ModelText
    colour: bool
    tokens: int = 0
    seconds: float = 0.0

    def paint(self, style: str, text: str) -> str:
        return f"{style}{text}{PLAIN}" if self.colour else text

    def title(self, text: str) -> None:
        print(f"\n{self.paint(BOLD, text)}")

    def line(self, who: str, text: str) -> None:
        print(f"  {self.paint(DIM, f'{who:6}')}  {text}")

    def answer(self, messages: list[Message], *, thinking: bool = False, tools: list[Message] | None = None) -> Reading:
        """Show the answer as it comes, thoughts behind a bar and calls as they arrive, and return it."""
        prompt = self.text.chat_prompt(messages, tools=tools, thinking=ThinkingPlan(enabled=thinking))
        sampling = SamplingParams(temperature=0.0, max_tokens=MAX_TOKENS)
        reading = Reading(self.text.tokenizer, sampling, thinking_open=prompt.thinking_open, tools=read_tools(tools))
        kind, start, first = "", time.perf_counter(), 0.0
        print(f"  {self.paint(DIM, 'nano  ')}  ", end="")
        for event in self.client.submit(prompt.token_ids, sampling, thinking=prompt.rules, media=prompt.media):
            first = first or time.perf_counter() - start  # reading the prompt; and torch, for the first picture
            for piece in reading.take(event):
                bar = "| " if piece.kind == "reasoning" else ""
                called = f"{piece.call.name} " if piece.call and piece.kind != kind else ""
                if piece.kind != kind:
                    print((f"\n{COLUMN}" if kind else "") + self.paint(DIM, bar), end="")
                shown = called + piece.text.replace("\n", f"\n{COLUMN}{bar}")
                print(self.paint(DIM, shown) if bar else shown, end="", flush=True)
                kind = piece.kind
        behind, seconds = max(0, reading.num_tokens - 1), time.perf_counter() - start - first
        self.tokens, self.seconds = self.tokens + behind, self.seconds + seconds
        told = f"{reading.num_tokens} tokens, the first after {first:.2f} s, then {behind / seconds:.0f} tokens/s"
        print(f"\n{COLUMN}{self.paint(DIM, told)}")
        return reading

    def greeting(self) -> None:
        self.title("A greeting")
        self.line("you", "Hello!")
        self.answer([{"role": "user", "content": "Hello!"}])

    def sums(self) -> None:
        question = f"What is {' + '.join(map(str, SUM))}?"
        for title, thinking in (("A sum, with thinking", True), ("The same sum, without thinking", False)):
            self.title(title)
            self.line("you", question)
            answer = self.answer([{"role": "user", "content": question}], thinking=thinking).content
            right = re.search(rf"\b{sum(SUM)}\b", answer)
            self.line("check", "right" if right else f"wrong: it is {sum(SUM)}")

    def tool(self) -> None:
        self.title("A tool call")
        self.line("tool", "get_weather(city): Get the weather in a city.")
        self.line("you", "What is the weather in Oslo?")
        messages: list[Message] = [{"role": "user", "content": "What is the weather in Oslo?"}]
        calls = self.answer(messages, tools=[WEATHER_TOOL]).calls
        if not calls:
            self.line("check", "no call: the model answered by itself")
            return
        self.line("tool", json.dumps(WEATHER))
        messages += [
            {"role": "assistant", "content": "", "tool_calls": [call.document() for call in calls]},
            *({"role": "tool", "tool_call_id": call.id, "content": json.dumps(WEATHER)} for call in calls),
        ]
        self.answer(messages, tools=[WEATHER_TOOL])

    def picture(self) -> None:
        """A number is drawn, shown here in blocks, and read."""
        self.title("A picture")
        drawn = draw(str(NUMBER))
        for row in blocks(drawn):
            print(f"{COLUMN}{row}")
        assert self.text.vision is not None
        media = fit(drawn, self.text.vision, Caps())
        question = "What number is this?"
        self.line("you", question)
        parts = [{"type": "image", "media": media}, {"type": "text", "text": question}]
        answer = self.answer([{"role": "user", "content": parts}]).content
        self.line("check", "right" if answer == str(NUMBER) else f"wrong: it is {NUMBER}")


def draw(text: str) -> Image.Image:
    picture = Image.new("RGB", (256, 128), "white")
    ImageDraw.Draw(picture).text((128, 64), text, "black", ImageFont.load_default(88), anchor="mm")
    return picture


def blocks(picture: Image.Image, columns: int = 64) -> list[str]:
    """The picture as lines of text, two pixels in a character."""
    rows = columns * picture.height // picture.width // 2
    small = picture.convert("L").resize((columns, 2 * rows)).point(lambda level: level < 128)
    pixels = [[bool(small.getpixel((x, y))) for x in range(columns)] for y in range(2 * rows)]
    pairs = zip(pixels[::2], pixels[1::2], strict=True)
    lines = ["".join(" ▄▀█"[2 * above + below] for above, below in zip(*pair, strict=True)) for pair in pairs]
    return [line.rstrip() for line in lines if line.strip()]


def show() -> None:
    """Load nano and go through the scenes."""
    started = time.perf_counter()
    client = EngineClient(EngineConfig(model="nano", offline=True))
    text = ModelText(client.files, client.model)
    client.start(text.vocabulary)
    try:
        client.wait_ready()
        demo = Demo(client, text, colour=sys.stdout.isatty() and "NO_COLOR" not in os.environ)
        parameters = text_parameters(client.model) / 1e6
        print(demo.paint(BOLD, f"Qwench {__version__}: nano, the embedded model, {parameters:.1f} million parameters"))
        print(demo.paint(DIM, f"loaded in {time.perf_counter() - started:.1f} s; {'; '.join(client.banner()[:2])}"))
        demo.greeting()
        demo.sums()
        demo.tool()
        demo.picture()
    finally:
        client.close()
    print(f"\n{demo.tokens / demo.seconds:.0f} tokens/s behind each answer's first.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--since", type=float, metavar="EPOCH", help="when `make demo` began, to tell the whole time")
    args = parser.parse_args()
    begun = time.time()
    try:
        show()
    except QwenchError as error:
        print(f"qwench: {error.message}", file=sys.stderr)
        return error.exit_code
    print(f"The demo took {time.time() - begun:.1f} s", end="")
    print(f", `make demo` with its installation {time.time() - args.since:.0f} s." if args.since else ".")
    print("Go on: .venv/bin/qwench chat · .venv/bin/qwench serve · .venv/bin/qwench --help")
    return 0


if __name__ == "__main__":
    sys.exit(main())
