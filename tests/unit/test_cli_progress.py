"""The time before the console's lines, and the milestones in them."""

from __future__ import annotations

import re
import threading
import time

import pytest

from pyvmm.cli.progress import Milestones, SilenceWatch, Timestamps


def stamped(*chunks: tuple[float, bytes]) -> bytes:
    """What comes out when each of ``chunks`` comes in at its time, the start being at 100."""
    out = bytearray()
    now = 0.0
    timestamps = Timestamps(out.extend, 100.0, lambda: now)
    for now, data in chunks:  # noqa: B007 - the clock reads it
        timestamps.write(data)
    return bytes(out)


def test_each_line_has_the_time_in_front() -> None:
    assert stamped((101.5, b"one\r\ntwo\r\n")) == b"   1.500 | one\r\n   1.500 | two\r\n"


def test_line_that_comes_in_parts_has_the_time_of_the_first() -> None:
    parts = ((101.0, b"o"), (102.0, b"ne"), (103.0, b"\n"), (104.0, b"two"))
    assert stamped(*parts) == b"   1.000 | one\n   4.000 | two"


def test_line_of_nothing_has_the_time() -> None:
    assert stamped((100.0, b"\n\n")) == b"   0.000 | \n   0.000 | \n"


def test_time_after_a_day_is_whole() -> None:
    assert stamped((100.0 + 86400.25, b"x")) == b"86400.250 | x"


def told(*chunks: bytes) -> list[str]:
    """The lines told of, at 12.34 s and 7 exits; what is passed on must be what came."""
    out, lines = bytearray(), list[str]()
    milestones = Milestones(out.extend, lines.append, lambda: 7, 100.0, lambda: 112.34)
    for data in chunks:
        milestones.write(data)
    assert out == b"".join(chunks)
    return lines


@pytest.mark.parametrize(
    ("line", "milestone"),
    [
        (b"Decompressing Linux... Parsing ELF... done.", "Decompressing Linux"),
        (b"[    0.000000] Linux version 6.1.0-56 (a@b) #1", "Linux version 6.1.0-56"),
        (b"[    0.1] smp: Brought up 1 node, 2 CPUs", "smp: Brought up 1 node, 2 CPUs"),
        (b"clocksource: Switched to clocksource tsc", "Switched to clocksource tsc"),
        (b"Trying to unpack rootfs image as initramfs...", "Trying to unpack rootfs image"),
        (b"Freeing unused kernel image (initmem) memory: 1K", "Freeing unused kernel image"),
        (b"[    9.0] Run /init as init process", "Run /init as init process"),
    ],
)
def test_milestone_is_told_with_time_and_exits(line: bytes, milestone: str) -> None:
    assert told(b"before\r\n" + line + b"\r\nafter") == [f"pyvmm: 12.3 s, 7 exits: {milestone}"]


def test_other_lines_are_not_told() -> None:
    assert told(b"Run faster\r\n", b"Linux\r\n", b"\xff\x00 version\n") == []


def test_milestone_that_comes_byte_by_byte_is_told_once() -> None:
    assert len(told(*(bytes([byte]) for byte in b"Run /init as init process\r\n"))) == 1


def test_milestone_is_told_behind_its_line() -> None:
    events: list[object] = []
    milestones = Milestones(events.append, events.append, lambda: 7, 100.0, lambda: 101.0)
    milestones.write(b"Freeing initrd memory: 4K\r\nnext")
    told_line = "pyvmm: 1.0 s, 7 exits: Freeing initrd memory"
    assert events == [b"Freeing initrd memory: 4K\r\n", told_line, b"next"]


def test_line_without_an_end_takes_no_memory() -> None:
    out, lines = bytearray(), list[str]()
    milestones = Milestones(out.extend, lines.append, lambda: 0, 0.0)
    for _ in range(1000):
        milestones.write(b"x" * 1000)
    assert len(milestones._line) < 4096


class Quiet:
    """A guest that says nothing, and stands at each of ``places`` when it is looked at.

    There is nothing more to tell of it afterwards.
    """

    def __init__(self, places: list[str | None]) -> None:
        self._places = iter(places)
        self.told: list[str] = []
        self.looked = threading.Semaphore(0)
        self.last_output = time.monotonic()

    def look(self) -> str | None:
        self.looked.release()
        return next(self._places, None)

    def watched(self, silence_s: float) -> SilenceWatch:
        return SilenceWatch(
            self.look,
            self.told.append,
            lambda: self.last_output,
            lambda: 7,
            time.monotonic(),
            silence_s=silence_s,
        )


def test_silence_is_told_with_what_the_guest_is_at() -> None:
    guest = Quiet(["in one+0x1", None, "in two+0x2"])
    watch = guest.watched(silence_s=0.01)
    for _ in range(4):
        assert guest.looked.acquire(timeout=10)
    watch.close()
    assert [re.sub(r"[\d.]+ s", "T s", line) for line in guest.told] == [
        "pyvmm: T s, 7 exits: in one+0x1",
        "pyvmm: T s, 7 exits: in two+0x2",
    ]


def test_guest_that_has_just_said_something_is_not_looked_at() -> None:
    guest = Quiet([])
    guest.last_output = time.monotonic() + 3600
    watch = guest.watched(silence_s=0.01)
    watch.close()
    assert not guest.looked.acquire(blocking=False)


def test_silence_watch_ends_at_once() -> None:
    began = time.monotonic()
    Quiet([]).watched(silence_s=3600).close()
    assert time.monotonic() - began < 60
