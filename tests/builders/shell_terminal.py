"""A guest's shell as somebody has it who types `pyvmm run` at a terminal.

terminal = ShellTerminal(stock_kernel("debian:6.1-cloud").path, initramfs)
assert terminal.command("echo $((6 * 7))").startswith("42")
"""

from __future__ import annotations

import io

import pexpect
from builders.stock_kernels import BOOT_TIMEOUT_S, CMDLINE, PYVMM

from pyvmm.initramfs import READY_MARKER


class ShellTerminal:
    """`pyvmm run` on a pseudo-terminal, its guest's shell ready for the first command."""

    def __init__(self, kernel: str, initramfs: str, timeout_s: float = BOOT_TIMEOUT_S) -> None:
        arguments = [*PYVMM[1:], "run", "--kernel", kernel, "--initrd", initramfs]
        arguments += ["--cmdline", f"{CMDLINE} quiet"]
        self.log = io.StringIO()
        self.process = pexpect.spawn(
            PYVMM[0],
            arguments,
            timeout=timeout_s,
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
