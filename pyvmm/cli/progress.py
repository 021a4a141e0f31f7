"""How far a boot is, for boots that take long: the console's lines with the time in front, the
kernel's milestones with how often it has come out to us, and where it is while it says nothing.

    12.345 | [    0.512000] smp: Brought up 1 node, 1 CPU          Timestamps, on the console
    pyvmm: 12.3 s, 5120 exits: smp: Brought up 1 node, 1 CPU       Milestones, on standard error
    pyvmm: 22.3 s, 5120 exits: in apply_returns+0x1c/0xf0          SilenceWatch, likewise

The first two are links of a chain that the console's bytes go through, called from a vCPU's thread.
Times are the host's: a guest that is emulated has its own idea of them.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from threading import Event, Thread
from typing import TYPE_CHECKING

from kvm_bindings import constants
from pyvmm.errors import PyvmmError
from pyvmm.terminal import ConsoleWriter
from pyvmm.threads import start_thread
from pyvmm.units import KiB

if TYPE_CHECKING:
    from pyvmm.machine import Machine

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
_SILENCE_S = 10.0
_FLUSH_PATIENCE_S = 2.0


class Progress:
    """What --timestamps and --verbose add to a console, around ``console``, its output.

    ``flush`` brings what is still on its way there to its reader. ``close`` ends it.
    """

    def __init__(
        self,
        console: _Output,
        flush: Callable[[], object],
        timestamps: bool,
        verbose: bool,
    ) -> None:
        self._flush = flush
        self._start = time.monotonic()
        self._machine: Machine | None = None
        self._silence: SilenceWatch | None = None
        self._milestones: Milestones | None = None
        self.write = Timestamps(console, self._start).write if timestamps else console
        if verbose:
            # Not by messages.tell(): that a reader of ours stands still must not stop a vCPU.
            self._stderr = ConsoleWriter(2)
            self._line_end = "\r\n" if os.isatty(2) else "\n"  # the terminal is raw meanwhile
            self._milestones = Milestones(self.write, self._tell, self._exits, self._start)
            self.write = self._milestones.write

    def watch(self, machine: Machine) -> None:
        """Say whose exits are told; and where it is while it says nothing, if its boot is slow."""
        self._machine = machine
        if self._milestones is not None and machine.board.is_booting:
            milestones = self._milestones
            self._silence = SilenceWatch(
                lambda: where_it_boots(machine),
                self._tell,
                lambda: milestones.last_output,
                self._exits,
                self._start,
            )

    def close(self) -> None:
        """Tell no more."""
        if self._silence is not None:
            self._silence.close()
        if self._milestones is not None:
            self._stderr.close(_FLUSH_PATIENCE_S)

    def _exits(self) -> int:
        return self._machine.exits if self._machine is not None else 0

    def _tell(self, text: str) -> None:
        self._flush()
        self._stderr.write((text + self._line_end).encode())


def where_it_boots(machine: Machine) -> str | None:
    """Where the first vCPU is; None if it waits for an interrupt, or user space runs."""
    if not machine.board.is_booting:
        return None
    machine.pause()
    try:
        vcpu = machine.vcpus[0]
        rip, user_mode = vcpu.get_regs().rip, vcpu.get_sregs().ss.dpl == 3
        waits = vcpu.get_mp_state() == constants.KVM_MP_STATE_HALTED
    finally:
        machine.resume()
    if waits or user_mode:
        return None
    name = machine.board.name_of(rip)
    return f"in {name}" if name else f"at {rip:#x}"


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
        self.last_output = start
        """When the guest has sent something last."""

    def write(self, data: bytes) -> None:
        """Take what the guest sends."""
        self.last_output = self._clock()
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


class SilenceWatch:
    """Tells where the guest is, each time that it has said nothing for ``silence_s``.

    ``look`` gives what it is at, or None if that is not worth telling; it is called from a thread
    of this class's own. ``last_output``, like ``start``, is one of ``clock``'s times.
    """

    def __init__(
        self,
        look: Callable[[], str | None],
        tell: Callable[[str], object],
        last_output: Callable[[], float],
        exits: Callable[[], int],
        start: float,
        clock: Callable[[], float] = time.monotonic,
        silence_s: float = _SILENCE_S,
    ) -> None:
        self._look = look
        self._tell = tell
        self._last_output = last_output
        self._exits = exits
        self._start = start
        self._clock = clock
        self._silence_s = silence_s
        self._is_over = Event()
        self._thread = Thread(target=self._watch, name="silence", daemon=True)
        start_thread(self._thread)

    def close(self) -> None:
        """Tell no more."""
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        last_news = self._clock()
        while True:
            last_news = max(last_news, self._last_output())
            if self._is_over.wait(max(last_news + self._silence_s - self._clock(), 0)):
                return
            if self._last_output() > last_news:
                continue
            try:
                what = self._look()
            except (PyvmmError, ValueError):  # it has ended, or been reset, meanwhile
                what = None
            last_news = self._clock()
            if what is not None:
                seconds = last_news - self._start
                self._tell(f"pyvmm: {seconds:.1f} s, {self._exits()} exits: {what}")
