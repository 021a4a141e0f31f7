"""Guest code for tests, from assembly source, by the system's assembler and linker (binutils).

    assemble("mov $0x3f8, %dx; outb %al, %dx; hlt", bits=16, origin=0x1000)

The syntax is AT&T, as in the kernel; a source that begins with ``.intel_syntax noprefix`` is
Intel's.
"""

from __future__ import annotations

import functools
import subprocess
import tempfile
from pathlib import Path

_EMULATION = {16: "elf_i386", 32: "elf_i386", 64: "elf_x86_64"}


class AssemblyError(Exception):
    """The assembler or the linker refused the source; the message is theirs."""


@functools.cache
def assemble(source: str, bits: int, origin: int = 0) -> bytes:
    """The machine code of ``source`` for a CPU in 16, 32 or 64-bit mode, to run at ``origin``.

    The code begins at the source's first byte. Raises AssemblyError.
    """
    with tempfile.TemporaryDirectory() as directory:
        obj, image = Path(directory, "code.o"), Path(directory, "code.bin")
        word = "--64" if bits == 64 else "--32"
        _run(["as", word, "-o", str(obj), "-"], f".code{bits}\n{source}\n")
        link = ["ld", "-m", _EMULATION[bits], f"-Ttext={origin:#x}", "--entry=0"]
        _run([*link, "--oformat=binary", "-o", str(image), str(obj)], "")
        return image.read_bytes()


def _run(command: list[str], source: str) -> None:
    done = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
    if done.returncode:
        raise AssemblyError(f"{command[0]}: {done.stderr.strip()}")
