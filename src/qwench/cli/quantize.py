"""``qwench quantize``: a checkpoint written in fewer bits, with a receipt of what that cost.

What is left of an interrupted run is gone on with by the same command. This file only puts the parts together.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.errors import OutputError, QwenchError, UsageError

if TYPE_CHECKING:
    from qwench.config import ModelConfig
    from qwench.engine.receipt import Receipt
    from qwench.weights.rewrite import Rewriting

BITS = (8, 6, 5, 4, 3, 2)
TEXT = "receipt.txt"
REFERENCE = "reference.bin"  # in the new folder until the receipt is there
RECEIPT = "receipt.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="nano, a short name, Hub id or folder with unquantised weights")
    parser.add_argument("target", metavar="DST", type=Path, help="a new folder; of an interrupted run, its folder")
    parser.add_argument("--bits", type=int, help="about this many bits a weight; finer where it matters")
    parser.add_argument("--type", metavar="TYPE", help="the same by name: q8, q6, q5, q4, q3, q2 or mxfp4")
    parser.add_argument("--no-receipt", action="store_true", help="do not run both models to compare them")
    parser.add_argument(
        "--delete-source",
        action="store_true",
        help="remove each source shard once its result is read back and verified",
    )
    parser.add_argument("--offline", action="store_true", help="never use the network to find the model")


def run(args: argparse.Namespace) -> int:
    """Write the folder and its receipt. Raises QwenchError with the reason and how to go on."""
    quantization = check(args)
    from qwench.config import ModelConfig
    from qwench.weights.locate import EMBEDDED, locate
    from qwench.weights.rewrite import Rewriting

    source = locate(args.source, offline=args.offline)
    if not source.is_dir():
        raise UsageError(f"{source} is a GGUF file, which is in its own format already; give a folder of safetensors.")
    if args.delete_source and args.source == EMBEDDED:
        raise UsageError("--delete-source would remove the embedded model; leave it out.")
    config = ModelConfig.from_folder(source)
    work = Rewriting(source, args.target, config, quantization)
    if not args.no_receipt:
        _keep_reference(work, config)
    _write(work, delete_source=args.delete_source)
    if not args.no_receipt:
        receipt = _compare(work)
        work.write_config(dataclasses.asdict(receipt))
        (args.target / REFERENCE).unlink(missing_ok=True)
        print(told(receipt), file=sys.stderr)
    work.close()
    print(f"{args.target} is ready: `qwench chat {args.target}`, `qwench show {args.target}`", file=sys.stderr)
    return 0


def check(args: argparse.Namespace) -> str:
    """The recipe asked for. Raises UsageError."""
    from qwench.config import EngineConfig

    if (args.bits is None) == (args.type is None):
        raise UsageError("give either --bits (8, 6, 5, 4, 3 or 2) or --type (such as mxfp4).")
    if args.type is None and args.bits not in BITS:
        raise UsageError(f"--bits is {args.bits}; it must be 8, 6, 5, 4, 3 or 2.")
    name = f"q{args.bits}" if args.type is None else args.type
    try:
        EngineConfig(quantization=name)
    except UsageError as error:
        raise UsageError(error.message.replace("quantization", "--type", 1)) from None
    return str(name)


def told(receipt: Receipt) -> str:
    """The receipt in words."""
    return (
        f"receipt: over the {receipt.tokens} tokens of {receipt.text} the mean KL divergence from the original is "
        f"{receipt.divergence:.5f} nats, and {receipt.agreement:.1%} of the first choices are the same"
    )


def _write(work: Rewriting, *, delete_source: bool) -> None:
    from qwench.progress import Progress

    with Progress("Quantising", 1) as bar:
        work.run(delete_source=delete_source, progress=lambda done, total: bar.update(done / max(total, 1)))


def _ids(folder: Path, config: ModelConfig) -> list[int]:
    """The text in this model's tokens, as many as fit its window."""
    from qwench.text.model import ModelText

    text = Path(__file__).resolve().parents[1] / "assets" / "text" / TEXT
    ids = ModelText(folder, config).tokenizer.encode(text.read_text(encoding="utf-8"))
    return ids[: config.max_positions - 1]


def _keep_reference(work: Rewriting, config: ModelConfig) -> None:
    """Run the original first: later its weights may be gone."""
    from qwench.config import EngineConfig
    from qwench.engine.receipt import keep, log_probabilities
    from qwench.progress import Progress

    file = work.target / REFERENCE
    if file.is_file():
        return
    ids = _ids(work.source, config)
    settings = EngineConfig(model=str(work.source), max_model_len=len(ids) + 1, max_num_seqs=1)
    try:
        with Progress("Reading the original", 1, delay=2.0) as bar:
            show = lambda done, total: bar.update(done / max(total, 1))  # noqa: E731
            keep(log_probabilities(settings, config, work.source, ids, show), file)
    except OSError as error:
        raise OutputError(f"{file} cannot be written ({error.strerror}); make room, or give --no-receipt.") from None
    except QwenchError as error:
        raise type(error)(f"The receipt needs the original in memory: {error.message} Or give --no-receipt.") from None


def _compare(work: Rewriting) -> Receipt:
    """Run the result and write receipt.json."""
    from qwench.config import EngineConfig, ModelConfig
    from qwench.engine.receipt import compare, log_probabilities
    from qwench.progress import Progress

    config = ModelConfig.from_folder(work.target)
    ids = _ids(work.target, config)
    settings = EngineConfig(model=str(work.target), max_model_len=len(ids) + 1, max_num_seqs=1)
    with Progress("Comparing", 1, delay=2.0) as bar:
        show = lambda done, total: bar.update(done / max(total, 1))  # noqa: E731
        chunks = log_probabilities(settings, config, work.target, ids, show)
        receipt = compare(work.target / REFERENCE, chunks, TEXT)
    text = json.dumps(dataclasses.asdict(receipt) | {"recipe": work.quantization}, indent=2)
    (work.target / RECEIPT).write_text(text + "\n", encoding="utf-8")
    return receipt
