"""A serial port's ends outside the machine: what a program reads, writes, and watches for.

A reset replaces the UART by a new one. What is here stays.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from pyvmm.errors import ConsoleError
from pyvmm.outcome import Outcome, RunResult
from pyvmm.units import KiB, MiB

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.serial import Serial16550

# How much of the output a Console keeps: what is older is forgotten.
_KEPT_BYTES = 8 * MiB


def _ignore() -> None:
    """What ``on_room`` is until somebody wants to know."""


class SerialInput:
    """The receiving end of a serial port, whichever UART is behind it at the time.

    ``on_room`` is called, from a vCPU's thread, when bytes that ``receive`` left would fit now.
    """

    def __init__(self) -> None:
        self.on_room: Callable[[], object] = _ignore
        self._serial: Serial16550 | None = None
        self._is_connected = False

    def connect(self, serial: Serial16550 | None) -> None:
        """Feed ``serial`` from now on; None, if the machine has no such port, takes all."""
        self._serial = serial
        self._is_connected = True
        if serial is not None:
            serial.on_room = lambda: self.on_room()
        self.on_room()

    def receive(self, data: bytes) -> int:
        """Take what fits, and say how much that is."""
        if self._serial is not None:
            return self._serial.receive(data)
        return len(data) if self._is_connected else 0

    def receive_break(self) -> bool:
        """Take a break, if it fits."""
        return self._serial is None or self._serial.receive_break()


class Console:
    """A serial port as a stream: ``write`` is what is typed, ``expect`` and ``read`` what comes.

    May be used from any thread. The guest takes what is written when it wants to, 16 bytes at a
    time; ``write`` does not wait for it.
    """

    def __init__(self, serial: SerialInput) -> None:
        self._serial = serial
        serial.on_room = self._feed
        self._news = threading.Condition()
        self._output = bytearray()
        self._read_bytes = 0
        self._ended = False
        self._pending = bytearray()
        self._feeding = threading.Lock()

    def write(self, data: bytes) -> None:
        """Type ``data``."""
        with self._feeding:
            self._pending += data
        self._feed()

    def read(self, timeout_s: float | None = None) -> bytes:
        """What has come since the last ``read`` or ``expect``; waits for the first of it.

        Empty once the run has ended and all was read, or after ``timeout_s``.
        """
        with self._news:
            self._news.wait_for(self._has_news, timeout_s)
            start, self._read_bytes = self._read_bytes, len(self._output)
            return bytes(self._output[start:])

    def expect(self, pattern: bytes, timeout_s: float | None = None) -> bytes:
        """Wait for ``pattern`` (a regular expression); what has come up to its end.

        Raises ConsoleError if it has not come after ``timeout_s``, or the run ended without it.
        """
        compiled = re.compile(pattern)
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._news:
            while (found := compiled.search(self._output, self._read_bytes)) is None:
                remaining_s = None if deadline is None else deadline - time.monotonic()
                if self._ended or not self._news.wait(remaining_s):
                    why = (
                        "the run ended" if self._ended else f"nothing more came in {timeout_s:g} s"
                    )
                    last = bytes(self._output[self._read_bytes :][-200:])
                    raise ConsoleError(
                        f"the console did not show {pattern!r}: {why}; its last bytes were {last!r}"
                    )
            start, self._read_bytes = self._read_bytes, found.end()
            return bytes(self._output[start : found.end()])

    @property
    def ended(self) -> bool:
        """Whether nothing more will come; some of it may not have been read yet."""
        return self._ended

    @property
    def output(self) -> bytes:
        """All that has come, read or not; at most the last 8 MiB."""
        with self._news:
            return bytes(self._output)

    def take(self, data: bytes) -> None:
        """For the machine: the guest has sent ``data``."""
        with self._news:
            self._output += data
            if len(self._output) > 2 * _KEPT_BYTES:
                forgotten = len(self._output) - _KEPT_BYTES
                del self._output[:forgotten]
                self._read_bytes = max(0, self._read_bytes - forgotten)
            self._news.notify_all()

    def end(self) -> None:
        """For the machine: nothing more will come."""
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _has_news(self) -> bool:
        return self._ended or len(self._output) > self._read_bytes

    def _feed(self) -> None:
        with self._feeding:
            while self._pending:
                taken = self._serial.receive(bytes(self._pending[: 4 * KiB]))
                if not taken:
                    return
                del self._pending[:taken]


class PanicWatch:
    """Reads along what the guest's kernel says, for its last words.

    After a panic a kernel prints what it knows, then resets the machine or loops for ever,
    whatever its command line says. ``judge`` makes the end of such a run a PANIC; ``overdue`` says
    when there is nothing more to wait for.
    """

    # A line that the kernel's printk begins: nothing but its time stamp may stand in front.
    _PANIC = re.compile(rb"^(?:<\d+>)?(?:\[[ .\d]+\] )?Kernel panic - not syncing: ([^\r\n]*)")
    _LAST_LINE = b"---[ end Kernel panic"
    _LINE_MAX_BYTES = 1 * KiB

    def __init__(self, output: Callable[[bytes], object]) -> None:
        self._output = output
        self._line = bytearray()
        self._message: str | None = None
        self._seen_at = 0.0
        self._is_over = False

    def write(self, data: bytes) -> None:
        """Pass on what the guest has sent, and read along."""
        self._output(data)
        self._line += data
        if b"\n" not in data and len(self._line) < self._LINE_MAX_BYTES:
            return
        *lines, rest = self._line.split(b"\n")
        for line in lines:
            if self._message is None and (found := self._PANIC.match(line)):
                self._message = found[1].decode("utf-8", "replace")
                self._seen_at = time.monotonic()
            elif self._message is not None and self._LAST_LINE in line:
                self._is_over = True
        self._line = rest[-self._LINE_MAX_BYTES :]

    def report(self) -> None:
        """A device has told of the panic."""
        if self._message is None:
            self._message = "its panic notifier said so"
            self._seen_at = time.monotonic()

    def judge(self, ending: RunResult | BaseException) -> RunResult | BaseException:
        """``ending``, or the panic if that is what led to it."""
        told = (Outcome.RESET, Outcome.HALTED, Outcome.TRIPLE_FAULT, Outcome.PANIC)
        if self._message is None or isinstance(ending, BaseException) or ending.outcome not in told:
            return ending
        return RunResult(
            Outcome.PANIC, f"the guest's kernel panicked: {self._message}", report=ending.report
        )

    def overdue(self, grace_s: float) -> RunResult | None:
        """The result of a run that is over since the kernel's last words."""
        if self._message is None:
            return None
        if not self._is_over and time.monotonic() < self._seen_at + grace_s:
            return None
        return RunResult(Outcome.PANIC, "")
