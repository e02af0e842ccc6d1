"""What the commands that run a model share: the flags of the engine, and how it is started. Knows no command."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwench.config import EngineConfig
    from qwench.engine.client import EngineClient
    from qwench.text.model import ModelText


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        default="nano",
        metavar="MODEL",
        help="nano (the default), a short name, Hub id, folder or GGUF file",
    )


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the engine")
    group.add_argument("--device", default="auto", help="cpu, cuda or auto")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 or auto")
    group.add_argument("--quantization", metavar="TYPE", help="round the weights to q8, q6, q5, q4, q3, q2 or mxfp4")
    group.add_argument(
        "--kv-cache-dtype", default="auto", metavar="TYPE", help="keys and values: auto (as dtype) or int8"
    )
    group.add_argument("--max-model-len", type=int, metavar="N", help="window in tokens, prompt and answer together")
    group.add_argument("--max-num-seqs", type=int, metavar="N", help="answers generated at the same time")
    group.add_argument("--memory", metavar="SIZE", help="for cached keys, values and states, such as 4GiB")
    group.add_argument("--no-prefix-cache", action="store_true", help="read every prompt from its beginning")
    group.add_argument("--cache-dir", metavar="DIR", help="keep states of prompts there across restarts")
    group.add_argument("--cache-dir-size", metavar="SIZE", help="of that folder at most, such as 20GiB (8GiB)")
    group.add_argument("--offline", action="store_true", help="never use the network to find the model")


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """The operator's choices. Raises UsageError."""
    from qwench.config import EngineConfig
    from qwench.llm import read_size

    return EngineConfig(
        model=args.model,
        device=args.device,
        dtype=args.dtype,
        quantization=args.quantization,
        kv_cache_dtype=args.kv_cache_dtype,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
        memory=None if args.memory is None else read_size(args.memory, "--memory"),
        offline=args.offline,
        prefix_cache=not args.no_prefix_cache,
        cache_dir=args.cache_dir,
        cache_dir_size=None if args.cache_dir_size is None else read_size(args.cache_dir_size, "--cache-dir-size"),
    )


@contextmanager
def running(
    args: argparse.Namespace, *, chat: bool = False, first: Callable[[EngineClient, ModelText], None] | None = None
) -> Iterator[tuple[EngineClient, ModelText]]:
    """The model of ``args``, loaded; it is closed at the end. Raises what keeps it from running.

    With ``chat``, a missing chat template is told before the weights are loaded; ``first`` is called there too.
    """
    from qwench.engine.client import EngineClient

    client = EngineClient(engine_config(args))
    client.prepare()

    from qwench.llm import wait_loaded
    from qwench.text.model import ModelText

    text = ModelText(client.files, client.model)
    if chat:
        _ = text.chat
    if first is not None:
        first(client, text)
    client.start(text.vocabulary)
    try:
        wait_loaded(client)
        for line in client.banner():
            print(line, file=sys.stderr)
        yield client, text
    finally:
        client.close()
