"""What stands behind ``--`` in `pyvmm run ... -- COMMAND`: a command for the guest, as in a pipe.

Its standard input is read to its end first; what it writes comes when it has ended. The console is
shown on standard error with --verbose, or if something goes wrong.
"""

from __future__ import annotations

import os
import shlex
import tempfile
from typing import TYPE_CHECKING

from pyvmm.cli.messages import complain, tell
from pyvmm.cli.run import tell_tuning
from pyvmm.outcome import Outcome
from pyvmm.signals import Signalled, signals_raise
from pyvmm.testing.command import run_in_guest
from pyvmm.testing.initramfs import make_initramfs
from pyvmm.testing.outcomes import (
    GuestEnded,
    GuestFailure,
    GuestTimeout,
    KernelPanic,
    VmmError,
)
from pyvmm.testing.text import plain_text

if TYPE_CHECKING:
    from pyvmm.config import MachineConfig

_LAST_LINES = 20
_STATUS_PANIC = 3
_STATUS_TIMEOUT = 124


def run_command(
    config: MachineConfig, command: list[str], timeout_s: float | None, verbose: bool
) -> int:
    """Run ``command`` in a guest as ``config`` has it, and return its status."""
    console = bytearray()

    def show(data: bytes) -> None:
        console.extend(data)
        if verbose:
            _write(2, data)

    stdin = b"" if os.isatty(0) else _read_all(0)
    text = command[0] if len(command) == 1 else shlex.join(command)
    try:
        with signals_raise(), tempfile.TemporaryDirectory(prefix="pyvmm-") as directory:
            if config.initrd is None:
                initramfs = make_initramfs(os.path.join(directory, "initramfs"))
                config = config._replace(initrd=initramfs)
            done = run_in_guest(
                config, text, stdin, show, timeout_s=timeout_s, on_built=tell_tuning
            )
    except Signalled as signalled:
        tell(f"pyvmm: {signalled}")
        return 128 + signalled.number
    except (GuestFailure, VmmError) as failure:
        if not verbose:
            lines = plain_text(bytes(console)).splitlines()
            tell("\n".join(lines[-_LAST_LINES:]))
        complain(failure)
        return _status_of(failure)
    _write(1, done.stdout)
    _write(2, done.stderr)
    if done.timed_out:
        tell(f"pyvmm: {text!r} was killed after {timeout_s:g} s")
        return _STATUS_TIMEOUT
    return done.returncode


# By their numbers: Python has no sys.stdin for one that was closed when it started.


def _read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def _write(fd: int, data: bytes) -> None:
    with open(fd, "wb", closefd=False) as file:
        file.write(data)


def _status_of(failure: Exception) -> int:
    """The exit status that `pyvmm run` has for such an end; 1 for one that is no failure there."""
    if isinstance(failure, KernelPanic):
        return _STATUS_PANIC
    if isinstance(failure, GuestTimeout):
        return _STATUS_TIMEOUT
    if isinstance(failure, GuestEnded) and failure.result is not None:
        is_tidy = failure.result.outcome in (Outcome.POWERED_OFF, Outcome.RESET)
        return 1 if is_tidy else failure.result.exit_status
    return 1
