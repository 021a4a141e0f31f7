"""``pyvmm run``: boot a kernel; its serial console is this terminal."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from errno import EPIPE
from typing import TYPE_CHECKING

from pyvmm.boot import Protocol
from pyvmm.cli.messages import tell
from pyvmm.config import DEFAULT_CMDLINE, DEFAULT_MEMORY_BYTES, MachineConfig
from pyvmm.errors import ConfigError
from pyvmm.loader.load import Decompress
from pyvmm.machine import Machine
from pyvmm.memory import Backing, HugePages
from pyvmm.outcome import Outcome, RunResult
from pyvmm.terminal import ConsoleReader, ConsoleWriter, RawTerminal, guard_standard_fds
from pyvmm.units import format_size, parse_size

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator
    from types import FrameType

HELP = "boot a kernel, its serial console on this terminal"

_EPILOG = """\
in the terminal: Ctrl-A x ends the run, Ctrl-A c sends Ctrl-A, Ctrl-A h lists the keys

exit status: 0 the guest powered off or reset itself; N it exited with N (debug exit port);
4 halted for good; 5 triple fault; 6 an instruction KVM cannot emulate; 7 another failure in KVM;
124 timeout; 128+N ended by signal N; 1 this machine cannot; 2 a mistake in what was given

examples:
  pyvmm run                                      the embedded kernel
  pyvmm run --kernel debian --initrd initramfs   Debian's cloud kernel, fetched once
  pyvmm run --kernel bzImage --cmdline "console=ttyS0" --mem 1G --timeout 60
"""


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add(
        "--kernel",
        metavar="FILE|NAME",
        help="vmlinux or bzImage, or a name from `pyvmm fetch --list`; default: the embedded one",
    )
    add(
        "--cmdline",
        default=DEFAULT_CMDLINE,
        metavar="TEXT",
        help="the kernel's command line (default: %(default)s)",
    )
    add("--initrd", metavar="FILE", help="initramfs or initrd, such as `pyvmm initramfs` makes")
    add(
        "--mem",
        metavar="SIZE",
        default=format_size(DEFAULT_MEMORY_BYTES).replace(" MiB", "M"),
        help="guest memory: 512M, 5G (default: %(default)s)",
    )
    add("--cpus", metavar="N", type=_whole_number, default=1, help="processors (this version: 1)")
    add(
        "--protocol",
        choices=("auto", "pvh", "linux64", "linux32"),
        default="auto",
        help="how the kernel is entered (default: PVH where it can be, else 64-bit)",
    )
    add(
        "--decompress",
        choices=("host", "guest"),
        help="who decompresses a bzImage (default: the host, except for linux32)",
    )
    add(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        help="end the run after so long, with status 124",
    )
    add(
        "--backing",
        choices=("anonymous", "memfd"),
        default="anonymous",
        help="what guest memory is made of",
    )
    add(
        "--huge-pages",
        choices=("transparent", "never", "hugetlb"),
        default="transparent",
        help="the host's pages behind guest memory",
    )
    add("-v", "--verbose", action="store_true",
        help="tell what was placed where, and how the guest is entered")  # fmt: skip


def run(args: Namespace) -> int:
    """Boot, connect the terminal, wait for the end, and say how it ended."""
    guard_standard_fds()
    config = _config(args)
    config.check()  # a mistake is told before anything is fetched
    config = config._replace(kernel=_kernel_path(args.kernel))
    writer = ConsoleWriter(1)
    with Machine(config, writer.write) as machine:
        if args.verbose:
            _describe(machine)
        with _ended_by_signals(machine), RawTerminal(0) as terminal, _raw_after_stop(terminal):
            reader = ConsoleReader(
                0,
                machine.serial,
                on_leave=lambda: machine.stop(_LEFT),
                notice=writer.write,
                terminal=terminal,
            )
            reader.start()
            try:
                result = machine.run(timeout_s=args.timeout)
            finally:
                reader.close()
                writer.close(_FLUSH_PATIENCE_S)
        if not writer.at_line_start and os.isatty(1) and os.isatty(2):
            tell("")
        if args.verbose:
            _tell_what_happened(machine)
    _tell_what_was_lost(writer)
    if result.report:
        tell(result.report)
    tell(f"pyvmm: {result.summary}")
    return result.exit_status


# How long a reader of standard output may take for the last bytes once the guest has ended.
_FLUSH_PATIENCE_S = 2.0

_LEFT = RunResult(Outcome.STOPPED, "ended from the terminal")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def _config(args: Namespace) -> MachineConfig:
    return MachineConfig(
        kernel="",  # not known yet: it may have to be fetched
        cmdline=args.cmdline,
        initrd=args.initrd,
        memory_bytes=parse_size(args.mem),
        cpus=args.cpus,
        protocol=Protocol(args.protocol),
        decompress=Decompress(args.decompress) if args.decompress else None,
        backing=Backing(args.backing),
        huge_pages=HugePages(args.huge_pages),
    )


def _kernel_path(kernel: str | None) -> str:
    """The file to boot. Without --kernel it is the kernel that was built with pyvmm."""
    if kernel is None:
        from pyvmm import embedded

        return embedded.path("kernel.elf")
    if "/" in kernel:
        return kernel
    from pyvmm.cli.fetch import progress_on_stderr
    from pyvmm.fetch import resolve_kernel

    return resolve_kernel(kernel, progress=progress_on_stderr())


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ConfigError(f"{text!r} is not a number of CPUs; expected 1") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:  # also refuses NaN
        raise ConfigError(f"{text!r} is not a time-out; expected seconds above 0, such as 60")
    return seconds


@contextmanager
def _ended_by_signals(machine: Machine) -> Iterator[None]:
    """While inside, a signal that would end this process ends the run instead, and tidily."""

    def end(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        machine.stop(RunResult(Outcome.SIGNAL, f"ended by {name}", number))

    # One that we were started to ignore, as by nohup, or by a shell for a job in the background,
    # stays ignored.
    previous = {
        number: signal.signal(number, end)
        for number in _SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _raw_after_stop(terminal: RawTerminal) -> Iterator[None]:
    """After Ctrl-Z and fg the shell has left the terminal in modes of its own: set ours again."""
    previous = signal.signal(signal.SIGCONT, lambda _number, _frame: terminal.apply())
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)


def _describe(machine: Machine) -> None:
    """What lies where in the guest, and how it is entered."""
    tell(f"pyvmm: {machine.config.kernel}: {machine.kernel.format.value}, "
             f"entered by {machine.protocol.value} at {machine.entry_gpa:#x}")  # fmt: skip
    for name, gpa, size_bytes in machine.placements():
        tell(f"  {gpa:#011x}..{gpa + size_bytes:#011x}  {name}")


def _tell_what_happened(machine: Machine) -> None:
    tell(f"pyvmm: {machine.exits} exits to userspace")
    for port, (reads, writes) in sorted(machine.ports.unclaimed().items()):
        tell(f"  no device at port {port:#06x}: {reads} reads, {writes} writes")
    for gpa, (reads, writes) in sorted(machine.mmio.unclaimed().items()):
        tell(f"  no device at address {gpa:#x}: {reads} reads, {writes} writes")


def _tell_what_was_lost(writer: ConsoleWriter) -> None:
    if writer.error is not None and writer.error.errno != EPIPE:  # `| head` is no accident
        tell(f"pyvmm: console output was lost: standard output: {writer.error.strerror}")
    if writer.dropped_bytes:
        tell(f"pyvmm: {writer.dropped_bytes} bytes of console output were not read, and lost")
