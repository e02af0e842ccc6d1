"""Where a ledger lies: an SQLite file or a PostgreSQL database, opened, made, and checked to be one of ours.

Every failure of the database becomes a sentence here. Knows nothing of what the rows mean.
"""

from __future__ import annotations

import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import ArgumentError, DBAPIError

from qwench.errors import LedgerError, LedgerUnavailable
from qwench.fault import fault
from qwench.gateway import tables

PATIENCE = 1.0  # seconds that a statement waits for another process to let the file go
POSTGRES = "postgresql+psycopg"
SQLITE = b"SQLite format 3\0"
# What the databases say, and what that means for who runs the gateway.
REASONS = (
    ("locked", "another process holds it locked; see which with `fuser`, it is free again when that one ends"),
    ("full", "the disk is full; free some space"),
    ("No space", "the disk is full; free some space"),
    ("readonly", "it may not be written; check the owner and the mode of the file and its folder"),
    ("unable to open", "it cannot be opened; check that its folder exists and may be written"),
    ("malformed", "its file is damaged; put a copy of it back"),
    ("not a database", "its file is damaged; put a copy of it back"),
    ("disk I/O", "the disk does not obey; see `dmesg`"),
    ("authentication", "the database server refuses the user or password of the URL"),
    ("does not exist", "the database server knows no such database or user; create it"),
    ("resolve host", "the database server's name is unknown; check the URL"),
    ("onnection", "the database server cannot be reached; check that it runs and the URL is right"),
)


def default_path() -> Path:
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "qwench" / "ledger.db"


@dataclass(frozen=True)
class Store:
    """An open database. ``name``: how sentences call it, without a password; ``beside``: the path of its anchor."""

    engine: sa.Engine
    name: str
    beside: Path
    first: str
    id: str

    @property
    def shared(self) -> bool:
        """Whether processes of other machines may write too."""
        return self.engine.dialect.name != "sqlite"

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """One consistent view, whatever is written meanwhile. Raises LedgerUnavailable."""
        with _told(self.name, "read"), self.engine.connect() as connection:
            if self.shared:
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is alone: the chain has one end. On the disk when the block is left, or DBAPIError."""
        with self.engine.connect() as connection:
            connection.execution_options(writes=True)
            with connection.begin():
                if self.shared:
                    connection.execute(sa.text("SELECT pg_advisory_xact_lock(:ledger)"), {"ledger": LOCK})
                yield connection
                fault("write.ledger")

    def close(self) -> None:
        self.engine.dispose()


LOCK = 0x5157_4C45  # PostgreSQL's name for the end of the chain


def connect(where: str, *, make: bool, now: float = 0.0) -> Store:
    """Open the ledger at a path or URL; ``make`` it where there is none. Raises LedgerError or LedgerUnavailable."""
    url, name = _url(where)
    path = Path(url.database) if url.get_backend_name() == "sqlite" and url.database else None
    if path is not None:
        _check_file(path, make)
    with ExitStack() as undone, _told(name, "opened"):
        fault("open.ledger")
        engine = sa.create_engine(url, **({"connect_args": {"timeout": PATIENCE}} if path else {"pool_pre_ping": True}))
        undone.callback(engine.dispose)
        if path is not None:
            sa.event.listen(engine, "connect", _prepare)
            sa.event.listen(engine, "begin", _begin)
        row = _ledger_of(engine, name, now if make else None)
        undone.pop_all()
    beside = path.with_name(f"{path.name}.anchor") if path else default_path().with_name(f"{row.id}.anchor")
    return Store(engine, name, beside, tables.first_hash(row.id, row.made, row.version), row.id)


def _ledger_of(engine: sa.Engine, name: str, made: float | None) -> sa.Row[Any]:
    """The row that says what ledger this is; an empty database becomes one, ``made`` now. Raises LedgerError."""
    with engine.connect() as connection:
        there = set(sa.inspect(connection).get_table_names())
    if not there and made is not None:
        _make(engine, made)
    elif "ledger" not in there or "attempt" not in there:
        raise LedgerError(f"{name} is a database, but holds no ledger; name another one.")
    with engine.connect() as connection:
        row = connection.execute(sa.select(tables.LEDGER)).one_or_none()
    if row is None:
        raise LedgerError(f"{name} is no ledger any more: the row with its id is gone.")
    if row.version != tables.VERSION:
        which = "newer" if row.version > tables.VERSION else "older"
        raise LedgerError(
            f"{name} is a ledger of version {row.version}, {which} than version {tables.VERSION} which this Qwench "
            "writes; use the Qwench that wrote it, or name a new ledger. Nothing was changed."
        )
    return row


def _url(where: str) -> tuple[sa.URL, str]:
    """The URL of ``where``, and how to call it. A PostgreSQL URL gets the one driver that is declared."""
    where = where.removeprefix("sqlite:///")
    if "://" not in where:
        return sa.URL.create("sqlite", database=str(Path(where).expanduser().absolute())), where
    if not where.startswith(("postgresql://", "postgres://")):
        raise LedgerError("the ledger's URL cannot be read; give a path, or postgresql://USER@HOST/NAME.")
    try:
        url = sa.make_url(where).set(drivername=POSTGRES)
        url.get_dialect().import_dbapi()
    except (ArgumentError, ValueError):
        raise LedgerError("the ledger's URL cannot be read; give a path, or postgresql://USER@HOST/NAME.") from None
    except ImportError:
        raise LedgerError("a ledger in PostgreSQL needs psycopg: pip install 'qwench[postgres]'.") from None
    return url, url.render_as_string(hide_password=True)


def _check_file(path: Path, make: bool) -> None:
    """Before SQLite touches it: a file of something else stays as it is, a new one is nobody else's to read."""
    try:
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if file.read(len(SQLITE)) != SQLITE:
                    raise LedgerError(f"{path} is a file, but no ledger; name another one.")
        elif not make:
            raise LedgerError(f"there is no ledger at {path}; `qwench gateway` writes one, --ledger names another.")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    except OSError as error:
        raise LedgerUnavailable(f"the ledger {path} cannot be opened: {str(error.strerror).lower()}.") from None


def _prepare(connection: Any, _: object) -> None:
    """What every SQLite connection needs; transactions are begun by ``_begin``, not by the driver."""
    assert isinstance(connection, sqlite3.Connection)
    connection.isolation_level = None
    connection.execute("PRAGMA synchronous=FULL")  # a committed row is on the disk
    connection.execute("PRAGMA secure_delete=ON")  # an erased text is overwritten, not only forgotten


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("writes") else "BEGIN")


def _make(engine: sa.Engine, now: float) -> None:
    if engine.dialect.name == "sqlite":
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert isinstance(raw, sqlite3.Connection)
            raw.execute("PRAGMA journal_mode=WAL")  # readers and the writer do not wait for one another
    with engine.connect() as connection:
        connection.execution_options(writes=True)
        with connection.begin():
            tables.metadata.create_all(connection)  # another process may have been faster
            if connection.execute(sa.select(tables.LEDGER.c.id)).first() is None:
                new = uuid.uuid4().hex
                connection.execute(tables.LEDGER.insert().values(id=new, made=now, version=tables.VERSION))
                first = tables.first_hash(new, now, tables.VERSION)
                connection.execute(tables.HEAD.insert().values(one=1, seq=0, at=now, hash=first))


def reason_of(error: BaseException) -> str:
    """What a failed statement or commit means, without the statement."""
    said = str(error.orig) if isinstance(error, DBAPIError) else str(getattr(error, "strerror", None) or error)
    return next((told for sign, told in REASONS if sign in said), said.splitlines()[0] if said else "no reason given")


@contextmanager
def _told(name: str, done: str) -> Iterator[None]:
    try:
        yield
    except (DBAPIError, sqlite3.Error, OSError) as error:
        raise LedgerUnavailable(f"the ledger {name} cannot be {done}: {reason_of(error)}.") from None
