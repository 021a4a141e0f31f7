"""``pyvmm run``: boot a kernel; its serial console is this terminal."""

from __future__ import annotations

import signal
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from pyvmm.cli.boot_options import add_boot_options, boot_config
from pyvmm.cli.messages import tell
from pyvmm.config import Tune
from pyvmm.errors import ConfigError
from pyvmm.machine import Machine
from pyvmm.memory import Backing, HugePages
from pyvmm.outcome import Outcome, RunResult
from pyvmm.serial_backend import File, SerialBackend, Stdio, open_backend
from pyvmm.signals import FATAL_SIGNALS
from pyvmm.terminal import guard_standard_fds

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Callable, Iterator, Sequence
    from types import FrameType

    from pyvmm.config import MachineConfig

HELP = "boot a kernel, its serial console on this terminal"
TAKES_COMMAND = True
"""What stands behind ``--`` is a command for the guest."""

_EPILOG = """\
in the terminal: Ctrl-A x ends the run, Ctrl-A c sends Ctrl-A, Ctrl-A h lists the keys

exit status: 0 the guest powered off (or reset itself, with --no-reboot); N it exited with N
(debug exit port); 3 its kernel panicked; 4 halted for good; 5 triple fault; 6 an instruction that
neither KVM nor pyvmm can emulate; 7 another failure in KVM; 124 timeout; 128+N ended by signal N;
1 this machine cannot; 2 a mistake in what was given

examples:
  pyvmm run                                      the embedded kernel
  pyvmm run --kernel debian --initrd initramfs   Debian's cloud kernel, fetched once
  pyvmm run --kernel bzImage --cmdline "console=ttyS0" --mem 1G --timeout 60
  pyvmm run --kernel debian -- uname -a          one command in the guest; its status is the run's
"""


def configure(parser: ArgumentParser) -> None:
    """Add this command's options."""
    parser.epilog = _EPILOG
    add = parser.add_argument
    add_machine_options(parser)
    add(
        "--serial",
        metavar="WHERE",
        action="append",
        help="stdio (the default for the first), file:PATH, pty, socket:PATH or none; "
        "up to four times, for ttyS0 to ttyS3",
    )
    add("--no-reboot", action="store_true", help="end the run when the guest resets itself")
    add("-v", "--verbose", action="store_true",
        help="tell what was placed where, how the guest is entered, and how far it is")  # fmt: skip
    add("--timestamps", action="store_true",
        help="put the seconds since the start before each line of ttyS0")  # fmt: skip


def add_machine_options(parser: ArgumentParser, default_timeout_s: float | None = None) -> None:
    """Add the options that make a machine and limit its time, for ``pyvmm test`` too."""
    add = parser.add_argument
    add(
        "--kernel",
        metavar="FILE|NAME",
        help="vmlinux, bzImage, UKI or Multiboot kernel, or a name from `pyvmm fetch --list`; "
        "default: the embedded one",
    )
    add_boot_options(parser)
    add(
        "--tune",
        choices=[tune.value for tune in Tune],
        default=Tune.AUTO.value,
        help="add to the kernel's command line what helps on a software KVM (auto: where it is "
        "one), or nothing",
    )
    add("--cpus", metavar="N", type=_whole_number, default=1, help="processors (default: 1)")
    add(
        "--timeout",
        metavar="SECONDS",
        type=_seconds,
        default=default_timeout_s,
        help="end the run after so long"
        + (f" (default: {default_timeout_s:g})" if default_timeout_s else ", with status 124"),
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


def run(args: Namespace) -> int:
    """Boot, connect the terminal, wait for the end, and say how it ended."""
    guard_standard_fds()
    config = machine_config(args)._replace(reboot=not args.no_reboot)
    config.check()  # a mistake is told before anything is fetched
    config = config._replace(kernel=kernel_path(args.kernel))
    if args.command is not None:
        if args.timestamps:
            raise ConfigError(
                "--timestamps was given, and a command for the guest, whose console is not shown; "
                "leave out one"
            )
        from pyvmm.cli.guest_command import run_command

        return run_command(config, args.command, args.timeout, args.verbose)
    with ExitStack() as backends_open:
        backends: list[SerialBackend | None] = []
        for text in _serial_ports(args.serial):
            backend = open_backend(text, on_leave=lambda: machine.stop(_LEFT))
            if backend is not None:
                backends_open.callback(backend.close)
            backends.append(backend)
        outputs = [backend.write if backend else None for backend in backends]
        console: Callable[[bytes], object] = outputs[0] or _nowhere
        progress = None
        if args.timestamps or args.verbose:
            from pyvmm.cli.progress import Progress

            flush = backends[0].flush if isinstance(backends[0], Stdio) else _nothing
            progress = Progress(console, flush, args.timestamps, args.verbose)
            backends_open.callback(progress.close)
            console = progress.write
        with Machine(config, console, outputs[1:]) as machine:
            _tell_notes(backends)
            tell_tuning(machine)
            if args.verbose:
                _describe(machine)
            if progress is not None:
                progress.watch(machine)
            with ended_by_signals(machine.stop, backends):
                for backend, port in zip(backends, machine.serial_inputs, strict=True):
                    if backend is not None:
                        backend.start(port)
                try:
                    result = machine.run(timeout_s=args.timeout)
                finally:
                    backends_open.close()
            if any(isinstance(backend, Stdio) and backend.is_mid_line for backend in backends):
                tell("")
            if args.verbose:
                _tell_what_happened(machine)
    for backend in backends:
        if isinstance(backend, Stdio | File):
            _tell_notes([backend])
    if result.report:
        tell(result.report)
    tell(f"pyvmm: {result.summary}")
    return result.exit_status


_SERIAL_PORTS_MAX = 4
_LEFT = RunResult(Outcome.STOPPED, "ended from the terminal")


def _serial_ports(given: list[str] | None) -> list[str]:
    """What ttyS0 and those after it are to be connected to."""
    ports = given or ["stdio"]
    if len(ports) > _SERIAL_PORTS_MAX:
        raise ConfigError(
            f"{len(ports)} serial ports were asked for; a PC has {_SERIAL_PORTS_MAX}; "
            "give --serial less often"
        )
    if ports.count("stdio") > 1:
        raise ConfigError("stdio can be only one serial port's; give the others something else")
    return ports


def _nowhere(data: bytes) -> None:
    """Where the console goes that was not asked for."""


def _nothing() -> None:
    """What there is to flush where there is no console of ours."""


def _tell_notes(backends: Sequence[SerialBackend | None]) -> None:
    for backend in backends:
        for note in backend.notes if backend else []:
            tell(f"pyvmm: {note}")


def machine_config(args: Namespace) -> MachineConfig:
    """What the options say, but for the kernel, which may have to be fetched."""
    return boot_config(args)._replace(
        cpus=args.cpus,
        backing=Backing(args.backing),
        huge_pages=HugePages(args.huge_pages),
        tune=Tune(args.tune),
    )


def kernel_path(kernel: str | None) -> str:
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
        raise ConfigError(f"{text!r} is not a number of CPUs; expected one such as 2") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e9:  # also refuses NaN
        raise ConfigError(f"{text!r} is not a time-out; expected seconds above 0, such as 60")
    return seconds


@contextmanager
def ended_by_signals(
    stop: Callable[[RunResult], object], backends: Sequence[SerialBackend | None]
) -> Iterator[None]:
    """While inside, a signal that would end this process calls ``stop`` instead.

    More of the same signal change nothing, here and until the process ends: how the run ended is
    still to be told, and made the exit status.
    """
    received = set[int]()

    def end(number: int, _frame: FrameType | None) -> None:
        received.add(number)
        name = signal.Signals(number).name
        stop(RunResult(Outcome.SIGNAL, f"ended by {name}", number))

    def go_on(_number: int, _frame: FrameType | None) -> None:
        for backend in backends:
            if isinstance(backend, Stdio):
                backend.foreground()

    # One that we were started to ignore, as by nohup, or by a shell for a job in the background,
    # stays ignored.
    previous = {
        number: signal.signal(number, end)
        for number in FATAL_SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    previous[signal.SIGCONT] = signal.signal(signal.SIGCONT, go_on)
    try:
        yield
    finally:
        # Blocked meanwhile: Python complains of one that it got but has no handler for any more
        # ("ignored due to race condition", CPython's Modules/signalmodule.c).
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, previous)
        for number, handler in previous.items():
            # No handler of ours would do: when Python exits it sets all that are functions to
            # SIG_DFL, and has a while to go then.
            signal.signal(number, signal.SIG_IGN if number in received else handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def tell_tuning(machine: Machine) -> None:
    """Say what was added to the command line, if anything was."""
    if added := machine.board.tuning:
        why = "" if machine.config.tune is Tune.SOFTWARE else "KVM has no hardware under it here; "
        tell(f"pyvmm: {why}added to the command line (--tune none adds nothing): {' '.join(added)}")


def _describe(machine: Machine) -> None:
    """What lies where in the guest, and how it is entered."""
    tell(f"pyvmm: {machine.config.kernel}: {machine.kernel.format.value}, "
             f"entered by {machine.protocol.value} at {machine.entry_gpa:#x}")  # fmt: skip
    move = machine.kernel.move
    if move is not None:
        tell(
            f"pyvmm: moved to physical {move.physical_base:#x}, virtual {move.virtual_base:#x} "
            f"(Kernel Offset: {move.virtual_offset:#x})"
        )
    for note in machine.board.notes:
        tell(f"  {note}")
    for name, gpa, size_bytes in machine.placements():
        tell(f"  {gpa:#011x}..{gpa + size_bytes:#011x}  {name}")


def _tell_what_happened(machine: Machine) -> None:
    tell(f"pyvmm: {machine.exits} exits to userspace")
    if completions := machine.completions:
        counts = ", ".join(f"{name} {count}" for name, count in completions.most_common())
        total = completions.total()
        tell(f"pyvmm: {total} instruction{'s'[: total != 1]} completed: {counts}")
    if machine.debug_registers_are_taken:
        tell(
            "pyvmm: hardware breakpoint 0 was taken, for system calls: the guest's own debug "
            "registers had no effect"
        )
    for port, (reads, writes) in sorted(machine.board.ports.unclaimed().items()):
        tell(f"  no device at port {port:#06x}: {reads} reads, {writes} writes")
    for gpa, (reads, writes) in sorted(machine.board.mmio.unclaimed().items()):
        tell(f"  no device at address {gpa:#x}: {reads} reads, {writes} writes")
