"""The relocations behind a kernel's ELF file, by which it can be moved (``--kaslr``).

Specification: arch/x86/tools/relocs.c (Linux 6.12); see loader/kaslr.py.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.errors import KernelImageError
from pyvmm.explain.model import Field, Section
from pyvmm.loader import elf
from pyvmm.loader.kaslr import RELOCATION_BYTES, read_relocations


def describe(vmlinux: memoryview) -> Iterator[Section]:
    """The section about them; none if there are none."""
    try:
        relocations = read_relocations(vmlinux, elf.parse(vmlinux).segments)
    except KernelImageError:
        return
    meanings = {
        "add64": "64-bit addresses",
        "subtract32": "inverse 32-bit addresses, of per-CPU variables",
        "add32": "32-bit addresses",
    }
    fields = []
    for name, table in relocations._asdict().items():
        count = len(table) // RELOCATION_BYTES
        fields.append(Field(name, count, str(count), meanings[name]))
    yield Section(
        "relocations",
        "Relocations",
        "arch/x86/tools/relocs.c",
        "How many numbers in it change if the kernel is moved: `pyvmm run --kaslr` can do that.",
        tuple(fields),
    )
