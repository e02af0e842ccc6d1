"""Everything that can go wrong, as one tree.

    QwenchError                        a sentence for the user; carries an HTTP status and an exit code
    ├── UsageError                     the command line or an argument is wrong
    ├── ConfigError                    config.json (or another side file) cannot be used
    ├── CheckpointError                a weight file is missing, damaged or does not fit
    ├── ModelNotFound                  the name leads to no model
    ├── TemplateError                  the chat template is missing or refuses the messages
    ├── RequestError                   one request is wrong; names the field in ``param``
    │   ├── ContextLengthExceeded      prompt and answer do not fit the window
    │   ├── MediaTooLarge              a picture, video or document is more than is read
    │   └── GrammarTooComplex          what the answer was to be grew beyond bounds while it was written
    ├── NotFinite                      the model gave no numbers to choose a token by
    ├── Overloaded                     the queue is full; try again later
    ├── EngineUnavailable              the engine is loading, stopping or has failed
    ├── OutputError                    results cannot be written
    ├── OutOfMemory                    what was asked for does not fit into memory
    └── LedgerError                    the ledger is none, damaged, or of another version
        └── LedgerUnavailable          it cannot be written at the moment: full disk, locked file

A message names the field or file, the reason and the fix. Bugs are asserts and keep their traceback.
This file knows nothing of HTTP frameworks or argument parsers; they read ``status`` and ``exit_code``.
"""

from collections.abc import Sequence

LISTED = 5  # how many names a sentence lists before it only counts


class QwenchError(Exception):
    """Base of all expected failures.

    ``status``: HTTP status; ``exit_code``: of the command; ``type`` and ``code``: OpenAI's error fields.
    """

    status = 500
    exit_code = 1
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class UsageError(QwenchError):
    status, exit_code, type = 400, 2, "invalid_request_error"


class ConfigError(QwenchError):
    exit_code = 3


class CheckpointError(QwenchError):
    exit_code = 4


class ModelNotFound(QwenchError):
    status, exit_code, type, code = 404, 5, "invalid_request_error", "model_not_found"


class TemplateError(QwenchError):
    status, exit_code, type = 400, 6, "invalid_request_error"


class RequestError(QwenchError):
    status, exit_code, type = 400, 7, "invalid_request_error"


class ContextLengthExceeded(RequestError):
    """The prompt has ``tokens``, the window ``window``; 0 where the prompt alone would fit."""

    code = "context_length_exceeded"

    def __init__(self, message: str, *, param: str | None = None, tokens: int = 0, window: int = 0) -> None:
        super().__init__(message, param=param)
        self.tokens, self.window = tokens, window


class MediaTooLarge(RequestError):
    status, code = 413, "request_too_large"


class GrammarTooComplex(RequestError):
    code = "grammar_too_complex"


class NotFinite(QwenchError):
    code = "nan_logits"


class Overloaded(QwenchError):
    """``retry_after``: seconds until there should be room again; ``code`` says of what."""

    status, exit_code, type, code = 429, 8, "rate_limit_error", "queue_full"

    def __init__(self, message: str, *, retry_after: float = 0.0, code: str = "queue_full") -> None:
        super().__init__(message)
        self.retry_after, self.code = retry_after, code


class EngineUnavailable(QwenchError):
    status, exit_code, type, code = 503, 9, "server_error", "engine_unavailable"


class OutputError(QwenchError):
    exit_code = 10


class OutOfMemory(QwenchError):
    status, exit_code = 503, 11


class LedgerError(QwenchError):
    exit_code = 12


class LedgerUnavailable(LedgerError):
    status, code = 503, "ledger_unavailable"


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are: what fits a sentence."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
