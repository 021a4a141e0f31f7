"""Page tables for the entry to a 64-bit kernel: the first 4 GiB, mapped to themselves.

The Linux 64-bit protocol asks for an identity map of the kernel, the zero page and the command
line; all of them lie below 4 GiB here. Pages of 2 MiB keep it at six tables:

    PML4 -> PDPT -> 4 x PD, 512 entries of 2 MiB each

Specification: SDM 3A 4.5 (4-level paging), table 4-17 (a PD entry that maps a 2 MiB page).
"""

from __future__ import annotations

import struct

from pyvmm.units import PAGE_SIZE, GiB, MiB

PRESENT = 1 << 0
WRITABLE = 1 << 1
PAGE_2M = 1 << 7

_ENTRIES = 512
_DIRECTORIES = 4 * GiB // (_ENTRIES * 2 * MiB)

SIZE_BYTES = (2 + _DIRECTORIES) * PAGE_SIZE


def identity_map(base_gpa: int) -> bytes:
    """The tables, to be placed at ``base_gpa`` (page-aligned), which CR3 then names."""
    pdpt_gpa = base_gpa + PAGE_SIZE
    directory_gpa = pdpt_gpa + PAGE_SIZE
    pml4 = struct.pack("<Q", pdpt_gpa | PRESENT | WRITABLE)
    pdpt = struct.pack(
        f"<{_DIRECTORIES}Q",
        *(directory_gpa + i * PAGE_SIZE | PRESENT | WRITABLE for i in range(_DIRECTORIES)),
    )
    count = _DIRECTORIES * _ENTRIES
    directories = struct.pack(
        f"<{count}Q", *range(PRESENT | WRITABLE | PAGE_2M, count * 2 * MiB, 2 * MiB)
    )
    return pml4.ljust(PAGE_SIZE, b"\0") + pdpt.ljust(PAGE_SIZE, b"\0") + directories
