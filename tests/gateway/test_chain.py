"""Whatever somebody changes in the file, ``verify`` finds it and says where."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from qwench.gateway import anchor as anchors
from qwench.gateway import tables
from qwench.gateway.anchor import parse
from qwench.gateway.records import Receipt
from tests.gateway.books import change, checked, fill, rows_of

CELLS = [(table.name, column.name) for table in tables.CHAIN for column in table.columns]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("books") / "ledger.db"
    fill(path)
    assert checked(path).whole
    return path


@pytest.fixture
def path(whole: Path, tmp_path: Path) -> Path:
    """A copy with its anchor."""
    for file in whole.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / whole.name


def wrong(path: Path) -> list[str]:
    found = checked(path)
    assert not found.whole
    return found.wrong


@pytest.mark.parametrize(("table", "column"), CELLS)
def test_every_cell_of_every_row_is_watched(path: Path, table: str, column: str) -> None:
    """Numbers become others, words become others, and what is unknown becomes known."""
    (seq,) = rows_of(path, f"SELECT max(seq) FROM {table}")[0]
    changed = f"CASE WHEN typeof({column}) = 'text' THEN {column} || 'x' ELSE ifnull({column}, 0) + 1000 END"
    change(path, f"UPDATE {table} SET {column} = {changed} WHERE seq = {seq}")
    told = " ".join(wrong(path))
    assert f"Row {seq} " in told or f"row {seq:,}" in told or f"Row {seq}," in told or "missing" in told


@pytest.mark.parametrize("column", ["amount", "input", "took", "price_input"])
def test_what_is_known_does_not_become_unknown(path: Path, column: str) -> None:
    change(path, f"UPDATE attempt SET {column} = NULL WHERE id = 'second-1'")
    assert "is not as it was written" in wrong(path)[0]


def test_every_row_that_is_taken_out_is_missed(whole: Path, tmp_path: Path) -> None:
    rows = [(table.name, seq) for table in tables.CHAIN for (seq,) in rows_of(whole, f"SELECT seq FROM {table.name}")]
    assert len(rows) == 16
    for table, seq in rows:
        for file in whole.parent.iterdir():
            shutil.copy(file, tmp_path)
        change(tmp_path / whole.name, f"DELETE FROM {table} WHERE seq = {seq}")
        assert wrong(tmp_path / whole.name), (table, seq)


def test_rows_that_changed_places_are_found(path: Path) -> None:
    first, second = (
        rows_of(path, f"SELECT seq FROM attempt WHERE id = '{name}'")[0][0] for name in ("second-0", "second-1")
    )
    change(
        path,
        f"UPDATE attempt SET seq = {-second} WHERE seq = {second}",
        f"UPDATE attempt SET seq = {second} WHERE seq = {first}",
        f"UPDATE attempt SET seq = {first} WHERE seq = {-second}",
    )
    assert len(wrong(path)) >= 2


def test_a_row_that_was_slipped_in_is_found(path: Path) -> None:
    columns = ", ".join(column.name for column in tables.OUTCOME.columns if column.name != "seq")
    change(path, f"INSERT INTO outcome (seq, {columns}) SELECT 3, {columns} FROM outcome LIMIT 1")
    assert any("used twice" in sentence for sentence in wrong(path))


def test_an_end_that_was_cut_off_with_care_is_found_by_the_anchor(path: Path) -> None:
    """The head is set back, so that the chain is whole in itself; only what lies outside knows better."""
    cut(path, 5)
    assert [sentence for sentence in wrong(path) if "its anchor knows row 16" in sentence]


def test_a_chain_that_was_written_anew_is_found_by_an_anchor_that_was_kept(path: Path) -> None:
    kept = checked(path).head
    assert kept is not None
    change(path, "UPDATE attempt SET amount = 0.0 WHERE id = 'second-0'")
    forge(path)
    assert checked(path).whole, "whoever writes both can forge both"
    found = checked(path, kept)
    assert any("the chain was written anew" in sentence for sentence in found.wrong)


def test_without_an_anchor_the_end_is_not_vouched_for(path: Path) -> None:
    head = checked(path).head
    path.with_name("ledger.db.anchor").unlink()
    assert "There is no anchor" in wrong(path)[0]
    assert head is not None
    assert checked(path, parse(str(head))).whole
    assert parse("no anchor") is None


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        (
            "UPDATE content SET text = 'It is nothing.' WHERE part = 'response'",
            "The response of attempt second-0 is not as",
        ),
        ("UPDATE content SET salt = '' WHERE part = 'request'", "The request of attempt second-0 is not as"),
        ("DELETE FROM content WHERE attempt = 'second-1'", "second-1 is missing, and no erasure is on record"),
        ("INSERT INTO content VALUES ('check-0', 'request', '', 'x')", "belongs to no row"),
        ("UPDATE head SET seq = 15", "The head names row 15 as the last one"),
        ("UPDATE head SET hash = 'x'", "The head names row 16"),
        ("DELETE FROM head", "The head names nothing"),
        ("UPDATE ledger SET id = 'mine'", "Row 1 "),
        ("UPDATE ledger SET made = 0", "Row 1 "),
    ],
)
def test_what_stands_beside_the_chain_is_watched_too(path: Path, statement: str, sentence: str) -> None:
    change(path, statement)
    assert any(sentence in each for each in wrong(path)), wrong(path)


def test_a_text_that_was_erased_and_is_back_is_found(path: Path) -> None:
    from qwench.gateway.ledger import Ledger

    (text,) = rows_of(path, "SELECT * FROM content WHERE attempt = 'second-0' AND part = 'request'")
    with Ledger.open(str(path)) as ledger:
        assert ledger.erase(task="task-0") == 2
    assert checked(path).whole
    change(path, f"INSERT INTO content VALUES {text!r}")
    assert any("was erased, and is back" in sentence for sentence in wrong(path))


def test_cells_of_another_type_are_findings_and_no_crash(path: Path) -> None:
    change(
        path,
        "UPDATE attempt SET contents = '[1]', at = 'yesterday', amount = x'00' WHERE id = 'second-0'",
        "UPDATE event SET detail = '{', kind = 'erased'",
    )
    assert len(wrong(path)) >= 2


def test_anybody_can_verify_an_export_with_ten_lines(path: Path) -> None:
    """The chain is plain: SHA-256 over JSON, no secret; what an auditor writes for himself."""
    import hashlib

    from qwench.gateway.exports import json_lines
    from qwench.gateway.store import connect

    store = connect(str(path), make=False)
    with store.reading() as connection:
        lines = list(json_lines(connection))
    store.close()
    ((name, made, version),) = rows_of(path, "SELECT id, made, version FROM ledger")
    last = hashlib.sha256(f"qwench ledger {name} {made!r} {version}".encode()).hexdigest()
    for line in lines:
        row = json.loads(line)
        table, told = row.pop("table"), row.pop("hash")
        said = {key: value for key, value in row.items() if value is not None}
        text = json.dumps([last, table, said], sort_keys=True, separators=(",", ":"))
        last = hashlib.sha256(text.encode()).hexdigest()
        assert last == told
    assert anchors.read(path.with_name("ledger.db.anchor")) == Receipt(len(lines), last)


def cut(path: Path, rows: int) -> None:
    ((last,),) = rows_of(path, "SELECT seq FROM head")
    keep = last - rows
    change(path, *(f"DELETE FROM {table.name} WHERE seq > {keep}" for table in tables.CHAIN))
    found = [
        row for table in tables.CHAIN for row in rows_of(path, f"SELECT hash FROM {table.name} WHERE seq = {keep}")
    ]
    change(path, f"UPDATE head SET seq = {keep}, hash = '{found[0][0]}'")


def forge(path: Path) -> None:
    """Every hash written anew, head and anchor too, as somebody would who read this package."""
    from qwench.gateway.chain import chained
    from qwench.gateway.store import connect

    store = connect(str(path), make=False)
    with store.reading() as connection:
        rows = list(chained(connection))
    store.close()
    last, statements = store.first, []
    for table, row in rows:
        last = tables.row_hash(last, table, row)
        statements.append(f"UPDATE {table} SET hash = '{last}' WHERE seq = {row['seq']}")
    change(path, *statements, f"UPDATE head SET hash = '{last}'")
    path.with_name("ledger.db.anchor").write_text(f"{len(rows)}:{last}", encoding="ascii")
