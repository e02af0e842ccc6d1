"""Which model a request means. One is served, so the name it sends can only be right, somebody else's, or a mistake.

Knows no API. What is told *about* a model is told under its own names only.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from qwench.errors import ModelNotFound, RequestError
from qwench.server.schemas import show

AnswersTo = Literal["served", "hosted", "any"]
# Models that their makers alone run, as quick starts and agents name them: nobody hopes to find these here, and no
# name of a model with open weights looks like them (gpt-oss has open weights).
HOSTED = re.compile(
    r"(?:openai/|anthropic/|google/)?(?:gpt-\d|chatgpt-|o\d(?:-|$)|codex-|claude-|gemini-)[\w.:@-]{0,80}",
    re.ASCII | re.IGNORECASE,
)
# Families of open weights that quick starts of Ollama name. None is ours, so no size and no version of what is served
# can have been meant; that is all the difference between these and a slip of the pen.
LIBRARY = re.compile(
    r"(?:(?:code|tiny)?llama|(?:code)?gemma|mistral|ministral|magistral|codestral|devstral|mixtral|phi|deepseek|gpt-oss"
    r"|kimi|glm|minimax|granite|smollm|olmo|command-[ar]|nemotron|cogito|falcon|(?:bak)?llava|moondream|starcoder|orca"
    r"|dolphin|vicuna)(?=[\d.:-]|$)[\w.:-]{0,80}",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Names:
    """The served model's names, its own first; without any there is nothing to confuse, and no name is asked for.

    ``answers_to``: the served names, those of models hosted elsewhere too, or any, also none.
    """

    served: tuple[str, ...] = ()
    answers_to: AnswersTo = "hosted"

    def meant(self, asked: str | None, *also: re.Pattern[str]) -> list[str]:
        """That ``asked`` is answered by the served model, with a warning where it is another's name; ``also``: names of
        others that quick starts of the API send.

        Raises RequestError where a name is missing, ModelNotFound where nobody could say what is meant.
        """
        if not self.served or asked in self.served:
            return []
        if self.answers_to == "any":
            return [self._instead(asked)] if asked else []
        if not asked:
            raise RequestError(f"model is missing; send {self.served[0]!r}.", param="model")
        if self.answers_to == "hosted" and any(names.fullmatch(asked) for names in (HOSTED, *also)):
            return [self._instead(asked)]
        return self.own(asked)

    def own(self, asked: str) -> list[str]:
        """That ``asked`` is one of the served names. Raises ModelNotFound."""
        if asked not in self.served:
            told = f"The model {show(asked)} is not served here; send {self.served[0]!r}."
            raise ModelNotFound(told, param="model")
        return []

    def _instead(self, asked: str) -> str:
        return f"model: {show(asked)} is not served here, {show(self.served[0])} answers"


UNNAMED = Names()
