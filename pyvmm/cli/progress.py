"""How far a boot is, for boots that take long: the console's lines with the time in front, and the
kernel's milestones with how often it has come out to us.

    12.345 | [    0.512000] smp: Brought up 1 node, 1 CPU          Timestamps, on the console
    pyvmm: 12.3 s, 5120 exits: smp: Brought up 1 node, 1 CPU       Milestones, on standard error

Both are links of a chain that the console's bytes go through, called from a vCPU's thread. Times
are the host's: a guest that is emulated has its own idea of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from pyvmm.units import KiB

_Output = Callable[[bytes], object]

# What Linux says on its way, in this order (6.12: arch/x86/boot/compressed/misc.c, init/main.c,
# kernel/smp.c, kernel/time/clocksource.c, init/initramfs.c).
_MILESTONE = re.compile(
    rb"(Decompressing Linux"
    rb"|Linux version [!-~]{1,64}"
    rb"|smp: Brought up [ -~]{1,64}"
    rb"|Switched to clocksource [!-~]{1,64}"
    rb"|Trying to unpack rootfs image"
    rb"|Freeing initrd memory"
    rb"|Freeing unused kernel image"
    rb"|Run [!-~]{1,64} as init process)"
)
_LINE = re.compile(rb"[^\n]*\n|[^\n]+")  # the last may be without its end
_LINE_MAX_BYTES = 1 * KiB


class Timestamps:
    """Passes on what it is given, each line with the seconds since ``start`` in front.

    The time is that of the line's first byte. ``start`` is one of ``clock``'s.
    """

    def __init__(
        self, output: _Output, start: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._output = output
        self._start = start
        self._clock = clock
        self._at_line_start = True

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        stamp = b"%8.3f | " % (self._clock() - self._start)
        out = bytearray()
        for line in _LINE.findall(data):
            if self._at_line_start:
                out += stamp
            out += line
            self._at_line_start = line.endswith(b"\n")
        self._output(bytes(out))


class Milestones:
    """Passes on what it is given, and tells of the milestones in it, each behind its line.

    ``tell`` gets a line with the time since ``start`` and what ``exits`` counts.
    """

    def __init__(
        self,
        output: _Output,
        tell: Callable[[str], object],
        exits: Callable[[], int],
        start: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._output = output
        self._tell = tell
        self._exits = exits
        self._start = start
        self._clock = clock
        self._line = bytearray()

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        for part in _LINE.findall(data):
            self._output(part)
            self._line += part
            if not part.endswith(b"\n"):
                del self._line[:-_LINE_MAX_BYTES]
                continue
            if found := _MILESTONE.search(self._line):
                seconds = self._clock() - self._start
                what = found[1].decode("ascii")
                self._tell(f"pyvmm: {seconds:.1f} s, {self._exits()} exits: {what}")
            self._line.clear()
