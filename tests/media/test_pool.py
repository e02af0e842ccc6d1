"""Decoders: what hangs is killed, what crashes is replaced, what grows is stopped, and nobody is unpickled."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwench.errors import Overloaded, RequestError
from qwench.media import reader as reader_module
from qwench.media.pool import Decoders
from qwench.media.reader import MediaReader
from qwench.media.settings import Caps
from qwench.media.sizes import Unusable
from tests.media.files import SMALL, bomb, data_uri, encoded, noise

PICTURE = encoded(noise(64, 64))


@pytest.fixture
def decoders() -> Iterator[Decoders]:
    found = Decoders(1, seconds=20)
    yield found
    found.close()


def busy(decoders: Decoders) -> int:
    """The process that is free."""
    decoder = decoders._free.get()
    decoders._free.put(decoder)
    assert decoder is not None
    return decoder._process.pid


def test_a_decoder_is_kept_and_replaced_when_it_dies(decoders: Decoders) -> None:
    decoders.decode("image", [PICTURE], SMALL, Caps())
    first = busy(decoders)
    decoders.decode("image", [PICTURE], SMALL, Caps())
    assert busy(decoders) == first
    os.kill(first, 9)
    with pytest.raises(Unusable, match="within the time and memory"):
        decoders.decode("image", [PICTURE], SMALL, Caps())
    decoders.decode("image", [PICTURE], SMALL, Caps())
    assert busy(decoders) != first


def test_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders(1, seconds=20)
    decoders.decode("image", [PICTURE], SMALL, Caps())
    process = busy(decoders)
    os.kill(process, 19)  # stopped: it neither reads nor answers
    decoders._seconds = 1.0
    start = time.monotonic()
    with pytest.raises(Unusable, match="within the time and memory"):
        decoders.decode("image", [PICTURE, bytes(4 << 20)], SMALL, Caps())
    assert time.monotonic() - start < 10
    assert not Path(f"/proc/{process}").exists()
    decoders._seconds = 20.0
    assert decoders.decode("image", [PICTURE], SMALL, Caps())
    decoders.close()


def test_one_that_needs_too_much_memory_says_so() -> None:
    decoders = Decoders(1, memory=420 << 20, seconds=20)
    with pytest.raises(Unusable, match="memory") as caught:
        decoders.decode("image", [bomb(9_900, 9_900)], SMALL, Caps())
    assert "send" in caught.value.reason
    assert decoders.decode("image", [PICTURE], SMALL, Caps())
    decoders.close()


def test_who_finds_none_free_is_told_to_come_again() -> None:
    decoders = Decoders(1, seconds=0.2)
    held = decoders._free.get()
    with pytest.raises(Overloaded):
        decoders.decode("image", [PICTURE], SMALL, Caps())
    decoders._free.put(held)


def test_threads_share_them() -> None:
    decoders, found = Decoders(2), []

    def look(seed: int) -> None:
        (media,) = decoders.decode("image", [encoded(noise(64, 64, seed))], SMALL, Caps())
        found.append((seed, media.digest))

    threads = [threading.Thread(target=look, args=(seed % 3,)) for seed in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 9
    assert len(set(found)) == 3
    decoders.close()


def test_a_decoder_has_a_network_of_its_own_and_writes_no_file(tmp_path: Path) -> None:
    script = (
        "import os, pathlib, sys; from qwench.media.decoder import shut_in; shut_in(1 << 31)\n"
        "print(int(sys.argv[1]) == os.stat('/proc/self/ns/net').st_ino)\n"
        "try: pathlib.Path(sys.argv[2]).write_text('x'); print('wrote')\n"
        "except OSError: print('closed')\n"
    )
    if subprocess.run(["unshare", "--user", "--net", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine has no user namespaces")
    ours = Path("/proc/self/ns/net").stat().st_ino
    found = subprocess.run(
        [sys.executable, "-c", script, str(ours), str(tmp_path / "x")],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.split() == ["False", "closed"]


def test_what_waits_is_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    decoders = Decoders(1)
    reader = MediaReader(SMALL, decoders=decoders)
    part = {"type": "image_url", "image_url": {"url": data_uri(encoded(noise(256, 256)))}}
    monkeypatch.setattr(reader_module, "MOST_HELD", 300_000)
    held = [reader.open(part, "x") for _ in range(2)]
    with pytest.raises(Overloaded, match="wait for their answers"):
        reader.open(part, "x")
    held.clear()
    assert reader.open(part, "x")
    decoders.close()


def test_a_decoder_that_cannot_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    part = {"type": "image_url", "image_url": {"url": data_uri(PICTURE)}}
    with pytest.raises(RequestError, match=r"^x cannot be read"):
        MediaReader(SMALL, decoders=Decoders(1)).open(part, "x")
