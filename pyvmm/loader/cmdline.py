"""The kernel's command line: bytes with a NUL behind them, no longer than the kernel takes.

A kernel cuts off silently what is too long, and boots without the options at the end; so that is
an error here. What is in it is the user's affair; cmdline_builder.py makes lines by the kernel's
rules.

Specification: Documentation/arch/x86/boot.rst, cmdline_size and "The Kernel Command Line".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout
from pyvmm.errors import CmdlineError
from pyvmm.loader.load import Placement

if TYPE_CHECKING:
    from pyvmm.loader.load import LoadedKernel
    from pyvmm.memory import GuestMemory

COMMAND_LINE_SIZE = 2048
"""Linux's buffer for it, the NUL included (arch/x86/include/asm/setup.h)."""


def place_cmdline(cmdline: str | bytes, memory: GuestMemory, kernel: LoadedKernel) -> Placement:
    """Put ``cmdline`` and a NUL at CMDLINE_GPA. The size of the placement counts the NUL.

    Text is encoded as UTF-8; bytes that came from argv and are no UTF-8 pass through unchanged.

    Raises CmdlineError if it has a NUL in it, or is longer than the kernel takes.
    """
    if isinstance(cmdline, str):
        try:
            encoded = cmdline.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise CmdlineError(
                f"the command line has the character {cmdline[error.start]!a} at position "
                f"{error.start}, which UTF-8 cannot express; remove it",
                "cmdline-encoding",
            ) from None
    else:
        encoded = cmdline
    nul = encoded.find(b"\x00")
    if nul >= 0:
        raise CmdlineError(
            f"the command line has a NUL at byte {nul}; the kernel would stop reading there; "
            "remove it",
            "cmdline-nul",
        )
    limit_bytes = cmdline_limit(kernel)
    if len(encoded) > limit_bytes:
        raise CmdlineError(
            f"the command line has {len(encoded)} bytes; this kernel takes at most {limit_bytes}; "
            "shorten it",
            "cmdline-size",
        )
    memory.write(layout.CMDLINE_GPA, encoded + b"\x00")
    return Placement("command line", layout.CMDLINE_GPA, len(encoded) + 1)


def cmdline_limit(kernel: LoadedKernel) -> int:
    """How many bytes of command line ``kernel`` takes, without the NUL."""
    header = kernel.setup_header
    stated_bytes = header.cmdline_size if header else COMMAND_LINE_SIZE - 1
    return min(stated_bytes, layout.CMDLINE_MAX_BYTES - 1)
