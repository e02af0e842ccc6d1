"""What an answer may cost and what it cost, in one line each: for a terminal or a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwench.reason.strategy import Strategy

ENDS = {
    "agreed": "they agree",
    "passed": "it passed the check",
    "samples": "all samples were drawn",
    "budget": "the budget is used up",
}


def before(strategy: Strategy, limit: int) -> str:
    """The upper bound, where one answer takes ``limit`` tokens at most."""
    return f"{strategy.method}: up to {strategy.most_samples()} samples, at most {strategy.at_most(limit):,} tokens"


def after(report: Mapping[str, Any]) -> str:
    """What came of it; ``report`` is that of an outcome."""
    tokens, votes, samples = report["tokens"], report["votes"], report["samples"]
    parts = [f"{len(samples)} samples, {tokens['used']:,} of at most {tokens['at_most']:,} tokens"]
    parts.append(f"prompts of {tokens['prompt']:,} tokens read once")
    if report["method"] != "best_of" and votes:
        lead = f"{votes[0]['votes']} of {sum(each['votes'] for each in votes)} votes for the answer"
        parts.append(f"{lead}, which would stay ahead with {report['stays']:.0%}" if "stays" in report else lead)
    if report["passed"] is False:
        parts.append("no answer passed the check")
    return "; ".join([*parts, ENDS[report["stopped"]]])
