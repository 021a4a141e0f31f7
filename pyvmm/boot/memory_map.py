"""The memory map that a kernel is given: which addresses are RAM, and which to keep off.

The same list serves the Linux protocols (``e820_table``) and PVH (``hvm_memmap_table_entry``):
their type numbers are the same, ACPI's.

Specification: ACPI 6.5 15 (System Address Map Interfaces), table 15.374.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import layout

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

RAM = 1
RESERVED = 2

TYPE_NAMES = {RAM: "usable", RESERVED: "reserved"}


class MemoryMapEntry(NamedTuple):
    """``size_bytes`` from ``base_gpa`` are of ``type``: RAM or RESERVED."""

    base_gpa: int
    size_bytes: int
    type: int


def memory_map(memory: GuestMemory) -> list[MemoryMapEntry]:
    """The map of ``memory``: its regions, less the EBDA, the VGA area and the BIOS area.

    What lies in low memory while the kernel starts (page tables, zero page, command line) counts
    as RAM: a kernel copies what it needs before it gives that memory away.
    """
    entries = []
    for region in memory:
        start = region.base_gpa
        if start == 0:
            low_end = min(layout.EBDA_GPA, region.end_gpa)
            entries.append(MemoryMapEntry(0, low_end, RAM))
            hole_bytes = layout.HIMEM_GPA - layout.EBDA_GPA
            entries.append(MemoryMapEntry(layout.EBDA_GPA, hole_bytes, RESERVED))
            start = layout.HIMEM_GPA
        if start < region.end_gpa:
            entries.append(MemoryMapEntry(start, region.end_gpa - start, RAM))
    return entries
