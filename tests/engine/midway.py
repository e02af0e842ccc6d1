"""A generation caught after its first tokens: the engine waits there to be asked, so it cannot run ahead of a test."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from qwench.engine.client import EngineClient, Generation
from qwench.engine.core import Engine
from qwench.engine.request import Saved


def submit_and_save(
    client: EngineClient, submit: Callable[[], Generation], tokens: int = 1
) -> tuple[Generation, Saved]:
    """What ``submit`` starts, and the sequence as it was after so many tokens of its answer."""
    submitted, reached = threading.Event(), threading.Event()

    def run(engine: Engine) -> None:
        assert submitted.wait(60)
        client._obey(engine)  # what was submitted is queued behind this very command
        requests = [*engine.scheduler.running, *engine.scheduler.waiting]
        request = next(each for each in requests if each.id == generation.id)
        while len(request.token_ids) < request.prompt_len + tokens:
            engine.step()
        reached.set()
        while client._commands.empty():
            time.sleep(0.001)

    client._commands.put(run)
    generation = submit()
    submitted.set()
    assert reached.wait(60)
    saved = client.save(generation)
    assert saved is not None, "the answer was over before it was to be saved"
    return generation, saved
