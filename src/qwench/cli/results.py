"""ResultFile: results of a batch, one JSON a line, each written whole or not at all; goes on with a file that exists.

Knows the form of a result, not what is in an answer.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from qwench.errors import OutputError
from qwench.fault import fault

BEGIN = b'{"id":"batch_req_'


class ResultFile:
    """``answered`` are the ids that have an answer already. Results that were failures are dropped, to be tried again.

    Raises OutputError if the file holds anything but results, or cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answered: set[str] = set()
        self.written = 0
        if path.is_file():
            self._take_over()
        try:
            fault("write.results")
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        except OSError as error:
            raise OutputError(f"{path} cannot be written ({error.strerror}); give another file with -o.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def write(self, result: Mapping[str, object]) -> None:
        """Append one line. Where it does not fit, nothing of it stays and OutputError is raised."""
        from qwench.server.errors import encode

        line = encode(result) + b"\n"
        done = 0
        try:
            while done < len(line):
                fault("write.results")
                done += os.write(self._file, line[done:])
        except OSError as error:
            with contextlib.suppress(OSError):  # a device has no length to cut
                os.ftruncate(self._file, os.fstat(self._file).st_size - done)
            full = error.errno in {errno.ENOSPC, errno.EDQUOT}
            reason = "the disk is full" if full else str(error.strerror).lower()
            raise OutputError(
                f"{self.path} cannot take more results: {reason}. The {self.written} written in this run are kept; "
                "make room and give the same command to go on."
            ) from None
        self.written += 1

    def _take_over(self) -> None:
        """Read what is there; if it holds more than answers, replace it by the answers alone, in one step."""
        spare = self.path.with_name(f"{self.path.name}.part")
        try:
            clean = True
            fault("write.results")
            with spare.open("wb") as kept:
                for line, custom_id in self._lines():
                    if custom_id is None or custom_id in self.answered:
                        clean = False
                    else:
                        self.answered.add(custom_id)
                        kept.write(line)
            if clean:
                spare.unlink()
            else:
                spare.replace(self.path)
        except OutputError:
            spare.unlink()
            raise
        except OSError as error:
            reason = f"cannot be continued ({error.strerror})"
            raise OutputError(f"{self.path} {reason}; give another file with -o.") from None

    def _lines(self) -> Iterator[tuple[bytes, str | None]]:
        """Each line with its id, None for what is no answer: failures, and a last line that was cut off."""
        with self.path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                whole = line.endswith(b"\n")
                result = _result(line)
                if result is not None and whole:
                    response = result.get("response")
                    good = isinstance(response, dict) and response.get("status_code") == 200
                    yield line, result["custom_id"] if good else None
                elif whole or line[: len(BEGIN)] != BEGIN[: len(line)]:
                    raise OutputError(
                        f"line {number} of {self.path} is no result of a batch, so the file was left as it is; give "
                        "another one with -o."
                    )
                else:
                    yield line, None


def _result(line: bytes) -> dict[str, Any] | None:
    try:
        result = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return result if isinstance(result, dict) and {"id", "custom_id", "response", "error"} <= result.keys() else None
