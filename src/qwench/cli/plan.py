"""``qwench plan``: whether a model fits, how fast it will be and what it will cost, before anything is downloaded.

Reads the flags and puts the parts of qwench.plan together; without --calibrate it loads no torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qwench.errors import OutputError, UsageError

if TYPE_CHECKING:
    from qwench.plan.cost import Task
    from qwench.plan.document import Setting
    from qwench.plan.hardware import Machine
    from qwench.plan.here import Calibration
    from qwench.plan.memory import Load
    from qwench.plan.model import Subject

CONTEXT = 8192


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a published model, a folder, a .gguf file, or OWNER/MODEL[/FILE.gguf] on the Hub",
    )
    parser.add_argument(
        "--hardware", metavar="NAME", help="a machine of the table instead of this one; `list` shows them"
    )
    parser.add_argument(
        "--for", dest="wish", metavar="WISH", help='what is wanted: "35b-a3b at 32k, 8 users, 20 tok/s"'
    )
    parser.add_argument(
        "--quantization", metavar="Q", help="bf16, q8, q6, q5, q4, q3, q2 or mxfp4; else the finest that fits"
    )
    parser.add_argument(
        "--context", type=_tokens, default=CONTEXT, metavar="N", help="tokens each sequence holds, such as 32k"
    )
    parser.add_argument("--users", type=_whole, default=1, metavar="N", help="sequences at a time")
    parser.add_argument("--kv-cache-dtype", default="auto", choices=("auto", "int8"), help="keys and values in 8 bits")
    parser.add_argument(
        "--snapshots", type=_whole, default=0, metavar="N", help="prefixes kept beside running sequences"
    )
    parser.add_argument("--pixels", type=_whole, default=0, metavar="N", help="the largest picture")
    parser.add_argument("--electricity", type=_positive, default=0.20, metavar="D", help="dollars per kWh")
    parser.add_argument("--years", type=_positive, default=3.0, metavar="N", help="over which a purchase is paid off")
    parser.add_argument("--task", metavar="IN,OUT", help="tokens of one attempt at a task")
    parser.add_argument("--completion", type=_share, metavar="P", help="the share of attempts that succeed")
    parser.add_argument(
        "--text", metavar="FILE", help="count the tokens per word of this text (with the tokenizer of MODEL)"
    )
    parser.add_argument("--wait", type=_positive, metavar="MONTHS", help="what waiting would bring")
    parser.add_argument(
        "--languages", type=_positive, metavar="R", help="what ATLAS says of R times the languages (a what-if)"
    )
    parser.add_argument("--hardware-file", type=Path, metavar="TOML", help="machines of your own")
    parser.add_argument("--price-file", type=Path, metavar="TOML", help="prices of your own")
    parser.add_argument("--calibrate", action="store_true", help="measure this machine (a minute or two) and keep it")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the plan as one page")
    parser.add_argument("--json", action="store_true", help="print one JSON document with exact numbers instead")


def run(args: argparse.Namespace) -> int:
    if args.calibrate:
        return _calibrate(args)
    if args.text is not None:
        return _count(args)
    if args.languages:
        return _languages(args)
    if args.wish is not None and args.model is not None:
        raise UsageError(f"--for names its model; leave out {args.model}, or write it into --for.", param="for")
    if args.html and (args.wish is not None or args.model is None):
        raise UsageError("--html shows the plan of one model; give a MODEL, without --for.", param="html")
    if args.hardware == "list":
        return _list(args)
    if args.wish is not None:
        return _wish(args)
    return _models(args) if args.model is None else _plan(args)


def _plan(args: argparse.Namespace) -> int:
    from qwench.plan.document import make_plan, to_json

    plan = make_plan(_subjects(args.model, args.quantization), _load(args), _setting(args))
    if args.html:
        from qwench.plan.page import page

        _write(args.html, page(plan))
    if args.json:
        print(json.dumps(to_json(plan)))
    else:
        from qwench.plan.terminal import console, show_plan

        show_plan(console(), plan)
        if args.html:
            print(f"Written to {args.html}.", file=sys.stderr)
    return 0


def _models(args: argparse.Namespace) -> int:
    from qwench.plan.choose import runs, scores

    machine, calibration = _machine(args)
    found = runs(machine, _load(args), calibration)
    if args.json:
        models = [
            {
                "model": offer.subject.name,
                "fits": offer.placement.fits,
                "precision": offer.subject.precision,
                "needed": offer.placement.needed,
                "speed": asdict(offer.speed),
                "scores": scores().get(offer.subject.name, {}),
            }
            for offer in found
        ]
        print(json.dumps({"machine": asdict(machine), "context": args.context, "models": models}))
    else:
        from qwench.plan.terminal import console, show_models

        show_models(console(), machine, found, args.context)
    return 0


def _wish(args: argparse.Namespace) -> int:
    from qwench.plan.choose import nearest_yes, offers
    from qwench.plan.wish import read_wish

    wish, setting = read_wish(args.wish), _setting(args)
    machines = [setting.machine] if args.hardware else _machines(args)
    found = offers(wish, machines, setting.terms, setting.calibration)
    nearest = None
    if not any(offer.verdict == "yes" for offer in found):
        nearest = nearest_yes(wish, machines, setting.terms)
    if args.json:
        rows = [
            {
                "machine": offer.machine.name,
                "verdict": offer.verdict,
                "reason": offer.reason,
                "precision": offer.subject.precision,
                "monthly": asdict(offer.monthly) if offer.monthly else None,
                "speed": asdict(offer.speed),
            }
            for offer in found
        ]
        near = {"giving_up": nearest[0], "machine": nearest[1].machine.name} if nearest else None
        print(json.dumps({"wish": asdict(wish), "offers": rows, "nearest": near}))
    else:
        from qwench.plan.terminal import console, show_offers

        show_offers(console(), wish, found, nearest)
    return 0 if any(offer.verdict == "yes" for offer in found) else 1


def _list(args: argparse.Namespace) -> int:
    machines = _machines(args)
    if args.json:
        print(json.dumps({"machines": [asdict(machine) for machine in machines]}))
    else:
        from qwench.plan.terminal import console, show_machines

        show_machines(console(), machines)
    return 0


def _languages(args: argparse.Namespace) -> int:
    from qwench.plan.trends import ATLAS, languages

    parameters, data, compute = languages(args.languages)
    if args.json:
        print(json.dumps({"languages": args.languages, "parameters": parameters, "data": data, "compute": compute}))
    else:
        print(f"{args.languages:g} times the languages at equal loss: {parameters:.2f} times the parameters,")
        print(f"{data:.2f} times the training data, {compute:.2f} times the training compute. {ATLAS}")
    return 0


def _count(args: argparse.Namespace) -> int:
    """Tokens per word of the user's own text: what its language costs."""
    from qwench.text.tokenizer import Tokenizer
    from qwench.weights.locate import locate

    try:
        text = Path(args.text).read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--text {args.text} cannot be read: {str(error.strerror).lower()}.", param="text") from None
    except UnicodeDecodeError:
        raise UsageError(f"--text {args.text} is not UTF-8 text.", param="text") from None
    words = len(text.split())
    if not words:
        raise UsageError(f"--text {args.text} holds no words.", param="text")
    name = args.model
    if name is None:
        raise UsageError("--text counts with a model's tokenizer; give a MODEL that is on this machine.", param="text")
    tokens = len(Tokenizer.from_folder(locate(name, offline=True)).encode(text))
    if args.json:
        print(json.dumps({"model": name, "words": words, "tokens": tokens, "tokens_per_word": tokens / words}))
    else:
        print(f"{words:,} words are {tokens:,} tokens of {name}: {tokens / words:.2f} tokens per word.")
    return 0


def _calibrate(args: argparse.Namespace) -> int:
    from qwench.bench.calibrate import calibrate
    from qwench.plan.here import calibration_path
    from qwench.plan.span import Span

    found = calibrate()
    path = calibration_path()
    try:
        found.save(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {str(error.strerror).lower()}.") from None
    if args.json:
        print(json.dumps(asdict(found)))
    else:
        print(
            f"{found.machine}: {found.bandwidth / 1e9:.1f} GB/s, {found.arithmetic / 1e12:.2f} T operations/s "
            f"({found.arithmetic_name})"
        )
        for each in found.every:
            generated = f"{min(each.decode):.0%} to {max(each.decode):.0%} of the first"
            read = f"reading {min(each.prefill):.1%} to {max(each.prefill):.1%} of the second"
            print(f"{each.bits:4.1f} bits a weight: generating reached {generated}, {read}")
            beside = Span.middle(each.overlap)
            print(f"      of a batch's shorter part {beside.low:.0%} to {beside.high:.0%} passed beside the longer")
        print(f"kept in {path}")
    return 0


def _subjects(name: str, precision: str | None) -> list[Subject]:
    """What to choose from, finest first: the files' own precision, one that is asked for, or the whole ladder."""
    from qwench.plan.choose import LADDER
    from qwench.plan.model import at, published
    from qwench.plan.shapes import lookup
    from qwench.weights.locate import EMBEDDED

    here = Path(name).expanduser().exists() or name.lower().endswith(".gguf")
    if lookup(name) is None and (name == EMBEDDED or here or "/" in name):
        return [_stored(name, precision)]
    shape = published(name)
    wanted = LADDER if precision is None else [precision]
    return [at(shape.short_name, shape.config, each) for each in wanted]


def _stored(name: str, precision: str | None) -> Subject:
    """A model that is no published shape, by the headers of its files: here, or on the Hub. Raises ModelNotFound."""
    from qwench.errors import ModelNotFound
    from qwench.plan.model import from_files
    from qwench.weights.locate import locate

    try:
        path = locate(name, offline=True)
    except ModelNotFound:
        from qwench.plan.hub import headers, is_name

        if Path(name).expanduser().exists() or not is_name(name):
            raise
        with headers(name) as found:
            return from_files(name, found, precision)
    return from_files(name, path, precision)


def _load(args: argparse.Namespace) -> Load:
    from qwench.plan.memory import Load

    return Load(args.context, args.users, args.kv_cache_dtype, args.snapshots, args.pixels)


def _setting(args: argparse.Namespace) -> Setting:
    from qwench.plan.cost import TYPICAL, Task, Terms, load_prices
    from qwench.plan.document import Setting

    machine, calibration = _machine(args)
    task = (
        _task(args.task, args.completion)
        if args.task
        else Task(TYPICAL.prompt, TYPICAL.answer, args.completion, TYPICAL.source)
    )
    terms = Terms(years=args.years, electricity=args.electricity)
    return Setting(machine, terms, task, load_prices(args.price_file), calibration, args.wait)


def _machine(args: argparse.Namespace) -> tuple[Machine, Calibration | None]:
    """The machine asked for or this one, and what was measured on this one."""
    from qwench.plan.hardware import THIS, find_machine, load_machines

    here, calibration = _here()
    this = args.hardware in (None, THIS)
    if this and args.hardware_file is None:
        return here, calibration
    machines = load_machines(args.hardware_file)  # its mistakes are told, whichever machine is asked for
    return (here if this else find_machine(args.hardware, machines)), calibration


def _machines(args: argparse.Namespace) -> list[Machine]:
    from qwench.plan.hardware import load_machines

    return [_here()[0], *load_machines(args.hardware_file).values()]


def _here() -> tuple[Machine, Calibration | None]:
    from qwench.device import probe
    from qwench.plan.here import ask_gpus, calibration_path, read_calibration, this_machine

    info = probe()
    calibration = read_calibration(calibration_path(), info)
    return this_machine(info, calibration, ask_gpus(info)), calibration


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--html {path} cannot be written: {str(error.strerror).lower()}.") from None


def _task(text: str, completion: float | None) -> Task:
    from qwench.plan.cost import Task

    parts = text.split(",")
    if len(parts) != 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"--task is {text!r}; give tokens in and out, such as 2000,500.", param="task")
    return Task(int(parts[0]), int(parts[1]), completion)


def _tokens(text: str) -> int:
    unit = {"k": 1024, "m": 1024 * 1024}.get(text[-1:].lower(), 1)
    digits = text[:-1] if unit > 1 else text
    if not digits.isdecimal() or not 1 <= int(digits) * unit <= 2**30:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 8192 or 32k")
    return int(digits) * unit


def _whole(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 2**40:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _share(text: str) -> float:
    value = _positive(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share; give a number above 0, at most 1")
    return value
