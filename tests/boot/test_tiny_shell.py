"""A busybox shell in linux:tiny answers what is typed: on any KVM.

Where KVM emulates kernel mode the shell is there after a minute, much of which is unpacking
busybox; a command takes a second or a few, as fork, exec and exit are the kernel's work.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from builders.shell_terminal import ShellTerminal
from builders.stock_kernels import make_initramfs, stock_kernel

LIMIT_S = 300.0

pytestmark = [pytest.mark.boot, pytest.mark.timeout(2 * LIMIT_S)]


def test_shell_answers_and_powers_off(tmp_path: Path) -> None:
    initramfs = make_initramfs(tmp_path, None)
    terminal = ShellTerminal(stock_kernel("linux:tiny").path, initramfs, LIMIT_S)
    try:
        assert terminal.command("echo $((6 * 7))").startswith("42\r\n")
        assert terminal.command("uname -s; id -u").startswith("Linux\r\n0\r\n")
        assert terminal.command("seq 3 | sort -r | tr '\\n' ' '").startswith("3 2 1 ")
        assert terminal.command("(exit 5); echo $?").startswith("5\r\n")
        terminal.process.send("poweroff -f\r")
        shown, status = terminal.ends()
    finally:
        terminal.process.close(force=True)
    assert status == 0
    assert shown.splitlines()[-1] == "pyvmm: the guest powered itself off"
