"""The interval timer, an i8254, and the port next to it: for hosts where each tick is dear.

Spec: Intel 8254 datasheet (231164-005); IBM PC AT Technical Reference (March 1986), "System
Timers", for what its counters are connected to.

Where KVM has hardware under it, KVM's own timer (KVM_CREATE_PIT2) is used, which is quicker and
holds nothing back. Where KVM emulates the guest's kernel mode, a tick takes the guest some
milliseconds to handle, and a kernel that asks for one every 4 ms does little else. There this one
stands, and its ticks have a *floor*: the least time from one to the next, whatever the guest has
asked for. A guest that keeps its time by its ticks alone falls behind by that; Linux has its TSC.

    counter 0   gate always on    OUT is IRQ 0: a tick is its rising edge
    counter 1   gate always on    OUT refreshed the AT's memory, and goes nowhere
    counter 2   gate by port B    OUT is the speaker's, and can be read at port B

Nothing counts here. What a counter shows, and when OUT is to rise next, is made up from the time
that has passed since it was loaded; a thread sleeps until a tick is due.

A count N is loaded; ticks are the 1193182ths of a second since, as long as the gate was on.

    mode 0   OUT low,  high at N, stays          4   high, low for one tick at N, once
         1   as 0, started by the gate           5   as 4, started by the gate
         2   high, low for the last tick of N    3   high and low for half of N each

Left out: that a counter takes a new count only at its next clock, and in modes 2 and 3 at the end
of its period; it takes it at once, as KVM's does. In modes 1 and 5 a new count ends what runs.
"""

from __future__ import annotations

import time
from threading import Condition, Thread
from typing import TYPE_CHECKING

from pyvmm.threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm.devices.bus import IrqLine

PIT_HZ = 1_193_182  # a twelfth of the PC's crystal of 14.31818 MHz
_NS = 1_000_000_000

CONTROL_OFFSET = 3

# Control word: counter, access, mode, BCD (datasheet, "Control Word Format").
_SELECT_SHIFT, _READ_BACK = 6, 3
_ACCESS_SHIFT, _ACCESS_MASK = 4, 3
_LATCH, _LOW, _HIGH, _LOW_THEN_HIGH = 0, 1, 2, 3
_MODE_SHIFT, _MODE_MASK = 1, 7
_BCD = 1
# Read-back command: which of the two is *not* wanted; then a bit for each counter.
_READ_BACK_NO_COUNT, _READ_BACK_NO_STATUS = 1 << 5, 1 << 4
# Status byte; bits 0 to 5 are as they were in the control word.
_STATUS_OUT, _STATUS_NULL_COUNT = 1 << 7, 1 << 6

# Port B, 0x61 ("System Board I/O").
PORT_B_GATE2 = 1 << 0
PORT_B_SPEAKER = 1 << 1
PORT_B_REFRESH = 1 << 4  # changes with each refresh of the memory, every 15 us
PORT_B_OUT2 = 1 << 5

_ONE_SHOT, _RETRIGGERABLE, _RATE, _SQUARE, _STROBE, _TRIGGERED_STROBE = range(6)
_STARTED_BY_GATE = (_RETRIGGERABLE, _TRIGGERED_STROBE)
_PERIODIC = (_RATE, _SQUARE)


class Counter:
    """One of the three. All times are in ns of the same clock.

    What is read and written goes by bytes; ``access`` says which of a count's two.
    """

    def __init__(self, *, gate: bool) -> None:
        self._gate = gate
        self._access = _LOW_THEN_HIGH
        self._mode = self._mode_written = _SQUARE
        self._is_bcd = False
        self._count: int | None = None  # none was loaded since the control word
        self._elapsed_ns = 0  # up to ``_since_ns``; or all of it, while that is None
        self._since_ns: int | None = None
        self._low_byte: int | None = None  # the first of two that are written
        self._reads_high = False  # of two that are read the second is next
        self._latched: int | None = None
        self._latched_status: int | None = None

    def control(self, word: int) -> None:
        """Take a control word that is not a latch command."""
        mode = word >> _MODE_SHIFT & _MODE_MASK
        self._mode = mode & 3 if mode > _TRIGGERED_STROBE else mode  # bit 2 is ignored in 6 and 7
        self._mode_written = mode
        self._access = word >> _ACCESS_SHIFT & _ACCESS_MASK
        self._is_bcd = bool(word & _BCD)
        self._count = None
        self._elapsed_ns, self._since_ns = 0, None
        self._low_byte = self._latched = self._latched_status = None
        self._reads_high = False

    def write(self, byte: int, now_ns: int) -> None:
        """Take a byte of a count; with the last one the counter starts."""
        if self._access == _LOW:
            self._load(byte, now_ns)
        elif self._access == _HIGH:
            self._load(byte << 8, now_ns)
        elif self._low_byte is None:
            self._low_byte = byte
            if self._mode == _ONE_SHOT:  # the first byte stops it, with OUT low
                self._count = None
        else:
            low_byte, self._low_byte = self._low_byte, None
            self._load(byte << 8 | low_byte, now_ns)

    def read(self, now_ns: int) -> int:
        """The next byte: of a latched status, of a latched count, or of the count as it is."""
        if self._latched_status is not None:
            status, self._latched_status = self._latched_status, None
            return status
        count = self._latched if self._latched is not None else self._shown(now_ns)
        if self._access == _LOW_THEN_HIGH:
            is_high, self._reads_high = self._reads_high, not self._reads_high
            is_last = is_high
        else:
            is_high, is_last = self._access == _HIGH, True
        if is_last:
            self._latched = None
        return count >> 8 if is_high else count & 0xFF

    def latch(self, now_ns: int) -> None:
        """Keep the count as it is, to be read; one that waits to be read stays."""
        if self._latched is None:
            self._latched = self._shown(now_ns)

    def latch_status(self, now_ns: int) -> None:
        """Keep the status, likewise."""
        if self._latched_status is None:
            self._latched_status = (
                (_STATUS_OUT if self.out(now_ns) else 0)
                | (0 if self._has_started else _STATUS_NULL_COUNT)
                | self._access << _ACCESS_SHIFT
                | self._mode_written << _MODE_SHIFT
                | self._is_bcd
            )

    @property
    def gate(self) -> bool:
        """Whether it may count. Modes 1 and 5 are started when this rises."""
        return self._gate

    def set_gate(self, level: bool, now_ns: int) -> None:
        """Drive GATE."""
        if level is self._gate:
            return
        self._gate = level
        if level:
            if self._mode not in (_ONE_SHOT, _STROBE):
                self._elapsed_ns = 0
            if self._count is not None:
                self._since_ns = now_ns
        elif self._mode not in _STARTED_BY_GATE:
            self._elapsed_ns, self._since_ns = self._ns_counted(now_ns), None

    def out(self, now_ns: int) -> bool:
        """The level at OUT."""
        if self._count is None:
            return self._mode != _ONE_SHOT
        if self._mode in _PERIODIC and not self._gate:
            return True
        if not self._has_started:
            return True
        ticks = self._ticks(now_ns)
        match self._mode:
            case 0 | 1:
                return ticks >= self._count
            case 2:
                return ticks % self._count != self._count - 1
            case 3:
                return ticks % self._count < (self._count + 1) // 2
            case _:
                return ticks != self._count

    def next_rise_ns(self, after_ns: int) -> int | None:
        """When OUT rises next, later than ``after_ns``; None if it does not."""
        if self._count is None or self._since_ns is None:
            return None
        ticks = max(self._ticks(after_ns), 0)
        if self._mode in _PERIODIC:
            at = (ticks // self._count + 1) * self._count
        else:
            at = self._count + (self._mode in (_STROBE, _TRIGGERED_STROBE))
            if ticks >= at:
                return None
        return self._since_ns - self._elapsed_ns + -(-at * _NS // PIT_HZ)

    def _load(self, count: int, now_ns: int) -> None:
        if self._is_bcd:
            # A digit above 9 is no digit; what the chip does then is not said.
            count = sum((count >> 4 * place & 0xF) * 10**place for place in range(4))
        self._count = count or (10_000 if self._is_bcd else 0x1_0000)
        if self._count == 1 and self._mode in _PERIODIC:
            self._count = 2  # "a count of 1 is illegal"; and a period of it would have no edge
        self._elapsed_ns = 0
        starts = self._gate and self._mode not in _STARTED_BY_GATE
        self._since_ns = now_ns if starts else None

    @property
    def _has_started(self) -> bool:
        """Whether there is a count, and nothing, as in modes 1 and 5 the gate, to wait for."""
        waits = self._mode in _STARTED_BY_GATE and self._since_ns is None
        return self._count is not None and not waits

    def _ns_counted(self, now_ns: int) -> int:
        if self._since_ns is None:
            return self._elapsed_ns
        return self._elapsed_ns + now_ns - self._since_ns

    def _ticks(self, now_ns: int) -> int:
        return self._ns_counted(now_ns) * PIT_HZ // _NS

    def _shown(self, now_ns: int) -> int:
        """The count as it is read."""
        if self._count is None:
            return 0
        ticks = self._ticks(now_ns)
        if self._mode == _SQUARE:  # counts by two, down from the even number, in each half
            high = (self._count + 1) // 2
            in_period = ticks % self._count
            in_half = in_period - high if in_period >= high else in_period
            remaining = (self._count & ~1) - 2 * in_half
        elif self._mode == _RATE:
            remaining = self._count - ticks % self._count
        else:
            remaining = self._count - ticks
        if self._is_bcd:
            return int(f"{remaining % 10_000:04}", 16)
        return remaining & 0xFFFF


class Pit:
    """The timer at offsets 0 to 2 (counters) and 3 (control). ``close`` ends its thread.

    ``irq`` is IRQ 0. ``floor_ns`` may be changed at any time, and holds from the next tick on.
    ``clock_ns`` does not go back.
    """

    access_bytes = 1

    def __init__(
        self, irq: IrqLine, floor_ns: int, clock_ns: Callable[[], int] = time.monotonic_ns
    ) -> None:
        self.floor_ns = floor_ns
        self._irq = irq
        self._clock_ns = clock_ns
        self._counters = (Counter(gate=True), Counter(gate=True), Counter(gate=False))
        self._last_tick_ns = clock_ns() - floor_ns
        self._seen_until_ns = 0  # rises of OUT up to here were ticks, or too many
        self._is_closed = False
        self._thread: Thread | None = None
        self._changed = Condition()
        """Guards all of it: the guest comes from a vCPU's thread, ticks from ours. ``tick`` and
        ``next_tick_ns`` are called with it held."""

    def read(self, offset: int, size: int) -> int:
        """Read a counter. The control word cannot be read."""
        if offset == CONTROL_OFFSET:
            return 0xFF
        with self._changed:
            return self._counters[offset].read(self._clock_ns())

    def write(self, offset: int, size: int, value: int) -> None:
        """Write a byte of a count, or a command."""
        with self._changed:
            now_ns = self._clock_ns()
            if offset == CONTROL_OFFSET:
                self._command(value, now_ns)
            else:
                self._counters[offset].write(value, now_ns)
                if offset == 0:
                    self._reschedule(now_ns)

    def next_tick_ns(self) -> int | None:
        """When the next tick is due; None if none is."""
        rise_ns = self._counters[0].next_rise_ns(self._seen_until_ns)
        return None if rise_ns is None else max(rise_ns, self._last_tick_ns + self.floor_ns)

    def tick(self) -> None:
        """Interrupt the guest. Rises of OUT that have come too early for the floor end in this."""
        self._last_tick_ns = self._seen_until_ns = self._clock_ns()
        self._irq.set(True)
        self._irq.set(False)

    def close(self) -> None:
        """Tick no more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    # Port B has counter 2.

    @property
    def gate2(self) -> bool:
        """Whether counter 2 may count."""
        return self._counters[2].gate

    def set_gate2(self, level: bool) -> None:
        """Drive counter 2's gate."""
        with self._changed:
            self._counters[2].set_gate(level, self._clock_ns())

    def out2(self) -> bool:
        """The level at counter 2's OUT."""
        with self._changed:
            return self._counters[2].out(self._clock_ns())

    def _command(self, word: int, now_ns: int) -> None:
        number = word >> _SELECT_SHIFT
        if number == _READ_BACK:
            for index, counter in enumerate(self._counters):
                if word & 2 << index:
                    if not word & _READ_BACK_NO_COUNT:
                        counter.latch(now_ns)
                    if not word & _READ_BACK_NO_STATUS:
                        counter.latch_status(now_ns)
        elif word >> _ACCESS_SHIFT & _ACCESS_MASK == _LATCH:
            self._counters[number].latch(now_ns)
        else:
            self._counters[number].control(word)
            if number == 0:
                self._reschedule(now_ns)

    def _reschedule(self, now_ns: int) -> None:
        """Counter 0 was changed: what it would have done before is off."""
        self._seen_until_ns = now_ns
        if self._thread is None:
            thread = Thread(target=self._run, name="pit", daemon=True)
            start_thread(thread)
            self._thread = thread
        self._changed.notify()

    def _run(self) -> None:
        with self._changed:
            while not self._is_closed:
                due_ns = self.next_tick_ns()
                wait_ns = None if due_ns is None else due_ns - self._clock_ns()
                if wait_ns is not None and wait_ns <= 0:
                    self.tick()
                else:
                    self._changed.wait(None if wait_ns is None else wait_ns / _NS)


class PortB:
    """Port 0x61: counter 2's gate and OUT, and a bit that shows that time goes on."""

    access_bytes = 1

    def __init__(self, pit: Pit) -> None:
        self._pit = pit
        self._speaker = 0
        self._refresh = 0

    def read(self, offset: int, size: int) -> int:
        """The port. Who waits for a refresh sees one at each second read."""
        self._refresh ^= PORT_B_REFRESH
        gate = PORT_B_GATE2 if self._pit.gate2 else 0
        out = PORT_B_OUT2 if self._pit.out2() else 0
        return gate | self._speaker | self._refresh | out

    def write(self, offset: int, size: int, value: int) -> None:
        """Set the gate. The speaker is not there; its bit is."""
        self._pit.set_gate2(bool(value & PORT_B_GATE2))
        self._speaker = value & PORT_B_SPEAKER
