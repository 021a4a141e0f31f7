"""`pyvmm run ... -- COMMAND` as a part of a pipe: what it does with its standard files."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Instead of a guest: one that gives back what it gets.
PROGRAM = """
import sys
from pyvmm.cli import guest_command
from pyvmm.config import MachineConfig
from pyvmm.terminal import guard_standard_fds
from pyvmm.testing.agent import Completed

def run_in_guest(config, text, stdin, show, **rest):
    show(b"console\\n")
    return Completed(text, 5, stdin, b"err\\n")

guard_standard_fds()
guest_command.run_in_guest = run_in_guest
config = MachineConfig(kernel="vmlinux", initrd="initramfs")
sys.exit(guest_command.run_command(config, ["true"], None, True))
"""


def run(redirections: str) -> subprocess.CompletedProcess[bytes]:
    shell = ["sh", "-c", f'exec "$@" {redirections}', "sh", sys.executable, "-P", "-c", PROGRAM]
    return subprocess.run(shell, input=b"in", capture_output=True, check=False)


@pytest.mark.parametrize(
    ("redirections", "stdout", "stderr"),
    [
        ("", b"in", b"console\nerr\n"),
        ("<&-", b"", b"console\nerr\n"),
        (">&-", b"", b"console\nerr\n"),
        ("2>&-", b"in", b""),
        ("<&- >&- 2>&-", b"", b""),
    ],
)
def test_closed_standard_file_is_no_reason_to_fail(
    redirections: str, stdout: bytes, stderr: bytes
) -> None:
    done = run(redirections)
    assert (done.returncode, done.stdout, done.stderr) == (5, stdout, stderr)
