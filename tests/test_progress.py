"""The progress bar: in place on a terminal, lines in a log, nothing before its time."""

from __future__ import annotations

import io

import pytest

from qwench.progress import Progress, clock_time


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def drive(stream: io.StringIO, delay: float = 0.0, enabled: bool = True, steps: int = 10, step: float = 1.0) -> str:
    clock = Clock()
    with Progress("Work", steps, stream=stream, delay=delay, enabled=enabled, clock=clock) as bar:
        for done in range(1, steps + 1):
            clock.now += step
            bar.update(done, f"{done} things")
    return stream.getvalue()


def test_on_a_terminal_it_is_drawn_in_place() -> None:
    told = drive(Screen())
    assert told.count("\r\x1b[2K") == 10
    assert told.count("\n") == 1
    assert "Work [############............]  50%  5/10  5 things  0:05 left" in told
    assert told.endswith("Work [########################] 100%  10/10  10 things  0:10\n")


def test_it_is_not_drawn_too_often() -> None:
    assert drive(Screen(), steps=1000, step=0.001).count("\r") < 15


def test_in_a_log_it_is_a_line_now_and_then() -> None:
    assert drive(io.StringIO()) == ""
    lines = drive(io.StringIO(), steps=10, step=20.0).splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("Work [#####...................]  20%  2/10")
    assert lines[-1].endswith("100%  10/10  10 things  3:20")
    assert not any("\r" in line for line in lines)


@pytest.mark.parametrize("options", [{"delay": 11.0}, {"enabled": False}])
def test_it_can_wait_and_be_silent(options: dict[str, float]) -> None:
    assert drive(Screen(), **options) == ""  # type: ignore[arg-type]


def test_what_was_done_before_does_not_count_for_the_time_left() -> None:
    clock = Clock()
    bar = Progress("Work", 100, stream=io.StringIO(), clock=clock)
    bar.skip(80)
    clock.now += 10
    bar.update(90)
    assert bar.line().endswith("90%  90/100  0:10 left")
    assert bar.seconds == 10


def test_a_share_has_no_count() -> None:
    bar = Progress("Loading", 1, stream=io.StringIO(), clock=Clock())
    bar.update(0.25)
    assert "25%  0:00 left" in bar.line()
    bar.update(2)
    assert "100%" in bar.line()


@pytest.mark.parametrize(("seconds", "told"), [(0.4, "0:00"), (59.6, "1:00"), (750, "12:30"), (11100, "3:05:00")])
def test_times(seconds: float, told: str) -> None:
    assert clock_time(seconds) == told
