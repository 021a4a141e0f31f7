"""Signals around a run: the first ends it, more of it change nothing, down to Python's own end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyvmm.cli.run import ended_by_signals

# A process of its own: what a signal does is a property of the process, and here may be its death.
PROGRAM = """
import os, signal
from pyvmm.cli.run import ended_by_signals

def stop(result):
    print(result.summary, flush=True)

class LastOfAll:
    def __del__(self):  # Python has given up its handlers by then
        os.kill(os.getpid(), signal.{number})
        print("the end", flush=True)

last_of_all = LastOfAll()
with ended_by_signals(stop, []):
    os.kill(os.getpid(), signal.{number})
os.kill(os.getpid(), signal.{number})
print("told", flush=True)
"""


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT"])
def test_signal_that_has_ended_the_run_is_ignored_until_the_process_ends(number: str) -> None:
    program = PROGRAM.format(number=number)
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, check=False)
    assert result.stdout.decode().splitlines() == [f"ended by {number}", "told", "the end"]
    assert (result.returncode, result.stderr) == (0, b"")


def test_run_that_no_signal_ended_leaves_the_handlers_as_they_were() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGCONT)
    before = [signal.getsignal(number) for number in numbers]
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    with ended_by_signals(lambda result: None, []):
        inside = [signal.getsignal(number) for number in numbers]
    assert set(inside).isdisjoint(before)
    assert [signal.getsignal(number) for number in numbers] == before
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == mask


# Instead of a guest: somebody who ends us while it runs.
GUEST_COMMAND = """
import os, signal, sys, threading
from pyvmm.cli import guest_command
from pyvmm.config import MachineConfig

def run_in_guest(*args, **kwargs):
    os.kill(os.getpid(), signal.{number})
    threading.Event().wait()

guest_command.make_initramfs = lambda path: open(path, "x").close() or path
guest_command.run_in_guest = run_in_guest
sys.exit(guest_command.run_command(MachineConfig(kernel="vmlinux"), ["true"], None, False))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_that_ends_a_command_for_the_guest_leaves_no_files(
    number: signal.Signals, tmp_path: Path
) -> None:
    program = GUEST_COMMAND.format(number=number.name)
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        check=False,
    )
    assert (result.returncode, result.stderr.decode()) == (
        128 + number,
        f"pyvmm: ended by {number.name}\n",
    )
    assert list(tmp_path.iterdir()) == []
