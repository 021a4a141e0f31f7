"""A shell in a stock kernel, typed to through the serial console on a terminal of its own."""

from __future__ import annotations

import io
from collections.abc import Iterator

import pexpect
import pytest
from builders.stock_kernels import BOOT_TIMEOUT_S, CMDLINE, PYVMM, stock_kernel

from pyvmm.initramfs import READY_MARKER

pytestmark = [pytest.mark.boot, pytest.mark.timeout(150)]


class Terminal:
    """`pyvmm run` on a pseudo-terminal, its guest's shell ready for the first command."""

    def __init__(self, initramfs: str) -> None:
        kernel = stock_kernel("debian:6.1-cloud")
        arguments = [*PYVMM[1:], "run", "--kernel", kernel.path, "--initrd", initramfs]
        arguments += ["--cmdline", f"{CMDLINE} quiet"]
        self.log = io.StringIO()
        self.process = pexpect.spawn(
            PYVMM[0],
            arguments,
            timeout=BOOT_TIMEOUT_S,
            encoding="utf-8",
            codec_errors="replace",
            logfile=self.log,
        )
        self.process.expect_exact(READY_MARKER)
        self.process.expect_exact("# ")

    def command(self, text: str) -> str:
        """Type a command, and return what is shown between it and the next prompt."""
        self.process.send(f"{text}\r")
        self.process.expect_exact(f"{text}\r\n")
        self.process.expect_exact("# ")
        shown: str = self.process.before
        return shown

    def ends(self) -> tuple[str, int]:
        """Wait for the end: what was shown until then, and the exit status."""
        self.process.expect(pexpect.EOF)
        self.process.wait()
        return self.process.before, self.process.exitstatus


@pytest.fixture
def terminal(shell_initramfs: str) -> Iterator[Terminal]:
    terminal = Terminal(shell_initramfs)
    yield terminal
    terminal.process.close(force=True)


def test_shell_answers_what_is_typed(terminal: Terminal) -> None:
    assert terminal.command("echo $((6 * 7))").startswith("42\r\n")
    assert terminal.command("uname -s; id -u").startswith("Linux\r\n0\r\n")


def test_ctrl_c_interrupts_a_command_in_the_guest(terminal: Terminal) -> None:
    terminal.process.send("sleep 1000; echo slept\r")
    terminal.process.expect_exact("slept\r\n")
    terminal.process.send("\x03")
    terminal.process.expect_exact("^C")
    terminal.process.expect_exact("# ")
    assert terminal.command("echo $?").startswith("130\r\n")  # 128 + SIGINT


def test_leaving_the_shell_ends_the_run(terminal: Terminal) -> None:
    terminal.process.send("exit\r")
    shown, status = terminal.ends()
    assert status == 0
    assert shown.splitlines()[-1] in (
        "pyvmm: the guest powered itself off",
        "pyvmm: the guest reset itself",
    )
