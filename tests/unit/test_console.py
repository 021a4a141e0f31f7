"""What is watched for in the guest's output, and what a reset leaves of a serial port."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pyvmm.console import Console, PanicWatch, SerialInput
from pyvmm.outcome import Outcome, RunResult

RESET = RunResult(Outcome.RESET, "reset")
PANIC = b"[    1.234567] Kernel panic - not syncing: VFS: Unable to mount root fs\r\n"
LAST_WORDS = (
    b"[    1.300000] ---[ end Kernel panic - not syncing: VFS: Unable to mount root fs ]---\r\n"
)


def watch(*parts: bytes) -> PanicWatch:
    passed_on: list[bytes] = []
    watch = PanicWatch(passed_on.append)
    for part in parts:
        watch.write(part)
    assert b"".join(passed_on) == b"".join(parts)
    return watch


def judged(watch: PanicWatch, ending: RunResult = RESET) -> RunResult:
    result = watch.judge(ending)
    assert isinstance(result, RunResult)
    return result


def test_a_reset_after_a_panic_is_a_panic() -> None:
    result = judged(watch(b"booting\r\n", PANIC))
    assert (result.outcome, result.exit_status) == (Outcome.PANIC, 3)
    assert result.summary == "the guest's kernel panicked: VFS: Unable to mount root fs"


def test_a_panic_that_comes_byte_by_byte_is_seen() -> None:
    parts = [PANIC[i : i + 1] for i in range(len(PANIC))]
    assert judged(watch(*parts)).outcome is Outcome.PANIC


def test_a_panic_without_time_stamp_is_seen() -> None:
    assert judged(watch(b"Kernel panic - not syncing: x\n")).outcome is Outcome.PANIC


@pytest.mark.parametrize(
    "text",
    [
        b"all is well\r\n",
        b"[    1.0] Kernel panic - not syncing: cut off before the end of the line",
        b"echo Kernel panic - not syncing: typed by a user\r\n",
    ],
)
def test_other_output_is_no_panic(text: bytes) -> None:
    assert judged(watch(text)) is RESET


@pytest.mark.parametrize("outcome", [Outcome.POWERED_OFF, Outcome.TIMEOUT, Outcome.STOPPED])
def test_other_ends_stay_what_they_are(outcome: Outcome) -> None:
    ending = RunResult(outcome, "")
    assert judged(watch(PANIC), ending) is ending


def test_nothing_is_awaited_after_the_kernels_last_words() -> None:
    assert watch(PANIC).overdue(60) is None
    assert watch(PANIC, LAST_WORDS).overdue(60) is not None


def test_a_panic_that_says_nothing_more_is_over_after_the_grace() -> None:
    assert watch(PANIC).overdue(0) is not None
    assert watch(b"fine\n").overdue(0) is None


def test_a_panic_told_by_a_device_counts() -> None:
    watching = watch(b"fine\n")
    watching.report()
    assert judged(watching).outcome is Outcome.PANIC


def test_a_line_without_end_is_not_kept_for_ever() -> None:
    watching = watch(*[b"x" * 1000] * 100)
    assert len(watching._line) <= 1024


class FakeUart:
    """Takes ``room`` bytes and remembers them."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.taken = b""
        self.on_room: Callable[[], object] = lambda: None

    def receive(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.taken += taken
        return len(taken)


def test_what_is_written_waits_for_room() -> None:
    serial, uart = SerialInput(), FakeUart(4)
    console = Console(serial)
    serial.connect(uart)  # type: ignore[arg-type]
    console.write(b"abcdefg")
    assert uart.taken == b"abcd"
    uart.room = 10
    uart.on_room()
    assert uart.taken == b"abcdefg"


def test_what_is_written_before_there_is_a_uart_waits_for_one() -> None:
    serial, uart = SerialInput(), FakeUart(10)
    console = Console(serial)
    console.write(b"early")
    serial.connect(uart)  # type: ignore[arg-type]
    assert uart.taken == b"early"


def test_old_output_is_forgotten_but_what_was_not_read_counts_from_there() -> None:
    console = Console(SerialInput())
    for _ in range(17):
        console.take(b"y" * (1 << 20))
    assert len(console.output) <= 16 << 20
    console.take(b"the end")
    assert console.expect(b"the end").endswith(b"the end")
