"""`pyvmm run ... -- COMMAND` and `pyvmm test`, as a user or git bisect runs them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from builders.stock_kernels import PYVMM, stock_kernel

pytestmark = [pytest.mark.boot, pytest.mark.timeout(120)]

QUIET = ("--mem", "128M", "--cmdline", "console=ttyS0 quiet panic=-1 reboot=k")


def pyvmm(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    verb, *rest = arguments
    kernel = ("--kernel", stock_kernel("linux:tiny").path)
    command = [*PYVMM, verb, *kernel, *QUIET, *rest]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=100)


def test_command_is_part_of_a_pipe() -> None:
    data = bytes(range(256)) * 4
    done = pyvmm("run", "--", "cat; echo said >&2; exit 5", stdin=data)
    assert (done.returncode, done.stdout, done.stderr) == (5, data, b"said\n")


def test_command_of_several_words_keeps_them() -> None:
    done = pyvmm("run", "--", "printf", "<%s>", "a b", "$HOME")
    assert (done.returncode, done.stdout) == (0, b"<a b><$HOME>")


def test_command_that_powers_off_has_failed_and_the_console_is_shown() -> None:
    done = pyvmm("run", "--", "poweroff -f; sleep 99")
    assert done.returncode == 1
    assert b"pyvmm initramfs: ready" in done.stderr
    assert b"the guest powered itself off, while waiting for the end of" in done.stderr


@pytest.mark.parametrize(
    ("script", "status", "said"),
    [
        ("echo fine", 0, "the guest exited with 0"),
        ("exit 7", 7, "the guest exited with 7"),
        ("exit 125", 125, "the guest exited with 125"),
        ("exit 200", 1, "the guest exited with 200"),
        ("echo c >/proc/sysrq-trigger", 1, "the guest's kernel panicked: sysrq triggered crash"),
        ("poweroff -f; sleep 99", 1, "the guest powered itself off"),
    ],
)
def test_verdict_is_git_bisects(tmp_path: Path, script: str, status: int, said: str) -> None:
    path = tmp_path / "check.sh"
    path.write_text(script)
    done = pyvmm("test", "--init", str(path))
    assert done.returncode == status, done.stdout
    assert said in done.stderr.decode()


def test_endless_script_is_bad_after_the_timeout(tmp_path: Path) -> None:
    path = tmp_path / "check.sh"
    path.write_text("echo it has begun; while :; do :; done")
    done = pyvmm("test", "--init", str(path), "--timeout", "10")
    assert (done.returncode, b"timeout: still running after 10 s" in done.stderr) == (1, True)
    assert b"it has begun" in done.stdout
