"""API keys: a name and a digest each, from flags, the environment or a file. A key itself is never kept or written."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwench.errors import UsageError

NAME = re.compile(r"[\w.@-]{1,64}")
STORED = re.compile(r"sha256:([0-9a-f]{64})")
UNNAMED = 8  # digits of its digest are the name of a key without one


@dataclass(frozen=True)
class Key:
    """``name`` may stand in logs and accounts; ``digest`` is the SHA-256 of the key in hex."""

    name: str
    digest: str

    @classmethod
    def of(cls, secret: str) -> Key:
        digest = _digest(secret)
        return cls(f"key-{digest[:UNNAMED]}", digest)


def owner_of(keys: Iterable[Key], secret: str) -> str:
    """The name of the key that was sent; empty if it is none of ours. Every key is compared, in constant time."""
    sent = _digest(secret)
    return "".join(key.name for key in keys if hmac.compare_digest(sent, key.digest))


def read_keys(path: Path) -> tuple[Key, ...]:
    """The keys of a file with a line ``NAME sha256:DIGEST`` each. Raises UsageError naming the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise UsageError(f"--api-keys {path} cannot be read ({reason}).", param="api_keys") from None
    keys: list[Key] = []
    for number, line in enumerate(lines, 1):
        words = line.partition("#")[0].split()
        if words:
            keys.append(_read_line(words, f"{path} line {number}", keys))
    if not keys:
        raise UsageError(f"{path} holds no key; give each a line NAME sha256:DIGEST.", param="api_keys")
    return tuple(keys)


def _read_line(words: Sequence[str], where: str, known: Sequence[Key]) -> Key:
    found = STORED.fullmatch(words[-1])
    if len(words) != 2 or found is None:
        told = "give NAME sha256:DIGEST, the digest from `printf %s KEY | sha256sum`"
        raise UsageError(f"{where} is no key; {told}.", param="api_keys")
    if not NAME.fullmatch(words[0]) or any(key.name == words[0] for key in known):
        raise UsageError(f"{where}: the name must be new, of letters, digits and . _ @ -.", param="api_keys")
    return Key(words[0], found[1])


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
