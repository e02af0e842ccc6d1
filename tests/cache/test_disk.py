"""The disk tier: what was stored comes back whole or not at all, whatever happened to the folder."""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qwench.cache.disk import DiskTier, Loaded
from qwench.cache.tree import pack
from qwench.errors import UsageError
from qwench.fault import planned

IDENTITY = bytes(range(32))
PAGE = 4
PAGE_BYTES = 8
STATE = b"state of "

Open = Callable[..., DiskTier]


def kv(ids: list[int], page: int) -> bytes:
    """What a page holds: its last token and its number, in eight bytes."""
    last = min(len(ids), (page + 1) * PAGE) - 1
    return ids[last].to_bytes(4, "little") + page.to_bytes(4, "little")


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    tiers: list[DiskTier] = []

    def start(identity: bytes = IDENTITY, limit: int = 10**6) -> DiskTier:
        tiers.append(DiskTier(tmp_path, identity, limit, PAGE))
        return tiers[-1]

    yield start
    for tier in tiers:
        if tier._thread.is_alive():
            tier.close()


def store(tier: DiskTier, ids: list[int], near: int = 1) -> bool:
    entry = tier.plan(pack(ids), near)
    if entry is None:
        return False
    pages = b"".join(kv(ids, page) for page in range(entry.first_page, -(-len(ids) // PAGE)))
    tier.put(entry, memoryview(pages), memoryview(STATE + bytes(ids)))
    return True


def load(tier: DiskTier, ids: list[int]) -> Loaded | None:
    entry = tier.find(pack(ids), len(ids))
    return tier.load(entry) if entry else None


def check(ids: list[int], loaded: Loaded) -> int:
    """That ``loaded`` is a beginning of ``ids``; its length."""
    position = len(loaded.state) - len(STATE)
    assert bytes(loaded.state) == STATE + bytes(ids[:position])
    pages: dict[int, bytes] = {}
    for first, data in loaded.runs:
        assert len(data) % PAGE_BYTES == 0
        pages |= {first + at // PAGE_BYTES: bytes(data[at : at + PAGE_BYTES]) for at in range(0, len(data), PAGE_BYTES)}
    assert pages == {page: kv(ids[:position], page) for page in range(-(-position // PAGE))}
    return position


def test_random_conversations_survive_a_restart(opened: Open) -> None:
    rng = random.Random(1)
    tier = opened()
    stored: list[list[int]] = []
    for _ in range(60):
        old = rng.choice(stored) if stored and rng.random() < 0.8 else []
        ids = old[: rng.randint(0, len(old))] + [rng.randrange(200) for _ in range(rng.randint(1, 20))]
        if store(tier, ids):
            stored.append(ids)
    tier.close()
    for tier in (opened(), opened()):
        for ids in stored:
            loaded = load(tier, ids)
            assert loaded is not None
            assert check(ids, loaded) == len(ids)
        assert load(tier, [255, 255]) is None


def test_a_conversation_is_stored_once_not_at_every_turn(opened: Open) -> None:
    tier = opened()
    ids = [number % 251 for number in range(400)]
    for length in range(20, 401, 20):
        assert store(tier, ids[:length])
    tier.close()
    stored = sum(file.stat().st_size for file in tier.path.glob("*.kv"))
    assert stored < 400 // PAGE * PAGE_BYTES + 20 * 400


def test_what_is_near_is_not_stored_again(opened: Open) -> None:
    tier = opened()
    assert store(tier, list(range(40)))
    assert not store(tier, list(range(40)), near=8)
    assert not store(tier, list(range(45)), near=8)
    assert store(tier, list(range(48)), near=8)


@pytest.mark.parametrize("kind", ["state", "kv"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone", "swap"])
def test_damage_anywhere_is_noticed_dropped_and_told(
    opened: Open, caplog: pytest.LogCaptureFixture, kind: str, damage: str
) -> None:
    tier = opened()
    first, second = list(range(20)), list(range(100, 120))
    for ids in (first, first + first, second):
        store(tier, ids)
    tier.close()
    again = opened()
    entry = again.find(pack(first), 20)
    assert entry is not None
    path = again._file(entry, kind)
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-30] ^= 1
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[:-1])
    elif damage == "gone":
        path.unlink()
    else:
        other = again.find(pack(second), 20)
        assert other is not None
        path.write_bytes(again._file(other, kind).read_bytes())
    with caplog.at_level(logging.WARNING, "qwench"):
        assert load(again, first) is None
        assert load(again, first) is None
        for ids in (first + first, second):
            if (loaded := load(again, ids)) is not None:
                assert check(ids, loaded) == len(ids)
    assert load(again, second) is not None
    assert len(caplog.records) == 1
    if kind == "kv":
        assert load(again, first + first) is None  # it went on from there
    assert store(again, first)
    again.close()
    whole = load(opened(), first)
    assert whole is not None
    check(first, whole)


def test_another_models_entries_are_never_seen(opened: Open) -> None:
    mine, other = opened(), opened(identity=bytes(32))
    store(mine, list(range(20)))
    mine.close()
    assert load(opened(identity=bytes(32)), list(range(20))) is None
    for file in mine.path.iterdir():  # even if its files are put there
        (other.path / file.name).write_bytes(file.read_bytes())
    assert load(opened(identity=bytes(32)), list(range(20))) is None


def test_files_that_were_never_finished_go(opened: Open) -> None:
    tier = opened()
    store(tier, list(range(20)))
    tier.close()
    (tier.path / "half.kv.1.part").write_bytes(b"x")
    (tier.path / "nonsense.kv").write_bytes(b"x" * 100)
    again = opened()
    assert len(again) == 1
    assert sorted(file.suffix for file in again.path.iterdir()) == [".kv", ".state"]


def test_the_folder_stays_within_its_size_and_the_oldest_go(opened: Open) -> None:
    tier = opened(limit=3000)
    for number in range(40):
        store(tier, [number] * 60)
    tier.close()
    assert 0 < tier.held <= 3000
    again = opened(limit=3000)
    assert again.held <= 3000 + 80 * 250
    assert load(again, [39] * 60) is not None
    assert load(again, [0] * 60) is None
    assert opened(limit=1).held == 0
    assert not list(tier.path.iterdir())


def test_a_full_disk_is_one_line_and_mends_itself(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    with planned() as plan, caplog.at_level(logging.WARNING, "qwench"):
        tier = opened()
        plan.fail("write.cache", OSError(errno.ENOSPC, "No space left on device"), times=3)
        for number in range(5):
            store(tier, [number] * 20)
        tier.close()
    assert len([record for record in caplog.records if "No space left" in record.message]) == 1
    assert load(opened(), [4] * 20) is not None
    assert load(opened(), [0] * 20) is None


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, opened: Open) -> None:
    with planned() as plan:
        plan.fail("write.cache", PermissionError(errno.EACCES, "Permission denied"))
        with pytest.raises(UsageError, match=r"--cache-dir is .*\(Permission denied\); give a folder"):
            opened()
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UsageError, match="--cache-dir is"):
        DiskTier(file, IDENTITY, 1000, PAGE)


def test_a_file_that_cannot_be_read_is_left_out(opened: Open) -> None:
    with planned() as plan:
        tier = opened()
        store(tier, list(range(20)))
        tier.close()
        plan.fail("read.cache", OSError(errno.EIO, "Input/output error"), times=1)
        assert load(opened(), list(range(20))) is None
