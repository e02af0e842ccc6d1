"""Tokenizer: the checkpoint's tokenizer.json, and the bytes behind every id.

Byte-level BPE only (the whole Qwen line). The vocabulary and the merges are taken from the file as they are; they are
never derived from a table of ranks, because some Qwen tokens have no merge. Knows nothing of chats or models.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from qwench.errors import CheckpointError, RequestError
from qwench.fault import fault

BLANK_BYTES = frozenset("".join(filter(str.isspace, map(chr, range(0x3001)))).encode())  # U+3000 is the last blank


def byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary, as character -> byte.

    Bytes that print in Latin-1 stand for themselves; the other 68 take the code points from 256 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


class Tokenizer:
    """Ids of a text and text of ids. ``size`` ids are usable; a model may have more rows, which are padding.

    ``added`` are the tags that are one token each, by id; ``special_ids`` those of them that are never shown.
    """

    def __init__(self, backend: tokenizers.Tokenizer, size: int | None = None) -> None:
        """``size`` where it is known: to ask for it makes a copy of the vocabulary."""
        # A tokenizer saved by a trainer may carry its truncation and padding; here they would eat prompts silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._alphabet = byte_alphabet()
        self._bytes: dict[int, bytes] = {}
        added = backend.get_added_tokens_decoder()
        self.added: dict[int, str] = {number: token.content for number, token in added.items()}
        self.special_ids: frozenset[int] = frozenset(number for number, token in added.items() if token.special)
        if size is None:
            size = 1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1)
        self.size = size

    @classmethod
    def from_folder(cls, folder: Path) -> Tokenizer:
        """Read ``tokenizer.json``; CheckpointError says what is missing or why the file cannot be used."""
        path = folder / "tokenizer.json"
        try:
            fault("read.tokenizer")
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} has no tokenizer.json; download that file from the model's page into the folder."
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); download it again.") from error
        return cls(_parse(text, path))

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``; added tokens such as ``<|im_start|>`` written in it become their own ids."""
        _check_text(text)
        return self._backend.encode(text, add_special_tokens=False).ids

    def encode_plain(self, text: str) -> list[int]:
        """Ids of ``text``; what looks like a special token in it stays ordinary text."""
        _check_text(text)
        backend = self._backend
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        pieces = [(text, (0, 0))]
        if backend.pre_tokenizer is not None:
            pieces = backend.pre_tokenizer.pre_tokenize_str(text)
        return [token.id for piece, _ in pieces for token in backend.model.tokenize(piece)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD, padding ids are nothing."""
        skipped = self.special_ids if skip_special_tokens else frozenset()
        return b"".join(self.token_bytes(number) for number in ids if number not in skipped).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes ``token_id`` adds to the text: of an added token its content, of a padding id none."""
        found = self._bytes.get(token_id)
        if found is None:
            found = self._bytes[token_id] = self._bytes_of(token_id)
        return found

    def token_text(self, token_id: int) -> str:
        """One token as text; U+FFFD where it holds only part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    @cached_property
    def blank_ids(self) -> frozenset[int]:
        """Ids that say nothing: white space, special tokens, and bytes that may be part of a white character.

        Any text that has an id outside of these is not blank.
        """
        letters = "".join(character for character, byte in self._alphabet.items() if byte in BLANK_BYTES)
        vocabulary = self._backend.get_vocab(with_added_tokens=False)
        maybe = (number for token, number in vocabulary.items() if not token.strip(letters))
        blank = {number for number in maybe if not self.token_bytes(number).decode("utf-8", "ignore").strip()}
        unused = frozenset(range(self.size)).difference(vocabulary.values(), self.added)
        return self.special_ids | blank | unused

    def id_of(self, token: str) -> int | None:
        """The id of an added token's content or of a vocabulary entry, None if there is none."""
        return self._backend.token_to_id(token)

    def _bytes_of(self, token_id: int) -> bytes:
        if token_id in self.added:
            return self.added[token_id].encode()
        token = self._backend.id_to_token(token_id) if 0 <= token_id < self.size else None
        if token is None:
            return b""
        if all(character in self._alphabet for character in token):
            return bytes(self._alphabet[character] for character in token)
        return token.encode()


def _parse(text: str, path: Path) -> tokenizers.Tokenizer:
    """The backend of a tokenizer.json that is JSON, is understood, and is byte-level."""
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}); the file is damaged, download it again.") from error
    if not _is_byte_level(raw.get("decoder") if isinstance(raw, dict) else None):
        raise CheckpointError(
            f"{path} is not a byte-level tokenizer (its decoder is not ByteLevel); Qwen3 and Qwen3.5 have such."
        )
    try:
        return tokenizers.Tokenizer.from_buffer(text.encode())  # from_str raises a bare Exception, this ValueError
    except ValueError as error:
        raise CheckpointError(f"{path} is not a usable tokenizer ({error}); download it again.") from error


def _is_byte_level(decoder: Any) -> bool:
    """Whether ``decoder`` is ByteLevel or a sequence that holds it, at whatever depth."""
    waiting = [decoder]
    while waiting:
        part = waiting.pop()
        if not isinstance(part, dict):
            continue
        if part.get("type") == "ByteLevel":
            return True
        inner = part.get("decoders")
        waiting += inner if isinstance(inner, list) else []
    return False


def _check_text(text: str) -> None:
    """Half a surrogate pair (legal in JSON as an escape) is no text; the library would end in a traceback."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The text has half of a surrogate pair (U+{ord(text[error.start]):04X}) at character {error.start}; "
            "send complete characters."
        ) from error
