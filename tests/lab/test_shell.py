"""A shell in a stock kernel, typed to through the serial console on a terminal of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders.shell_terminal import ShellTerminal
from builders.stock_kernels import stock_kernel

pytestmark = [pytest.mark.boot, pytest.mark.timeout(150)]


@pytest.fixture
def terminal(shell_initramfs: str) -> Iterator[ShellTerminal]:
    terminal = ShellTerminal(stock_kernel("debian:6.1-cloud").path, shell_initramfs)
    yield terminal
    terminal.process.close(force=True)


def test_shell_answers_what_is_typed(terminal: ShellTerminal) -> None:
    assert terminal.command("echo $((6 * 7))").startswith("42\r\n")
    assert terminal.command("uname -s; id -u").startswith("Linux\r\n0\r\n")


def test_ctrl_c_interrupts_a_command_in_the_guest(terminal: ShellTerminal) -> None:
    terminal.process.send("sleep 1000; echo slept\r")
    terminal.process.expect_exact("slept\r\n")
    terminal.process.send("\x03")
    terminal.process.expect_exact("^C")
    terminal.process.expect_exact("# ")
    assert terminal.command("echo $?").startswith("130\r\n")  # 128 + SIGINT


def test_leaving_the_shell_ends_the_run(terminal: ShellTerminal) -> None:
    terminal.process.send("exit\r")
    shown, status = terminal.ends()
    assert status == 0
    assert shown.splitlines()[-1] in (
        "pyvmm: the guest powered itself off",
        "pyvmm: the guest reset itself",
    )
