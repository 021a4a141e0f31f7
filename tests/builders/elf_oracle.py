"""pyelftools as an oracle: what it reads in an ELF file."""

from __future__ import annotations

import io
from typing import Any

from elftools.elf.elffile import ELFFile


def open_elf(data: bytes) -> Any:
    """``data`` as pyelftools sees it. (Its types do not tell one kind of segment from another.)"""
    return ELFFile(io.BytesIO(data))


def pvh_entries(oracle: Any) -> list[int]:
    """What the notes "Xen", 18 (XEN_ELFNOTE_PHYS32_ENTRY) hold."""
    return [
        int.from_bytes(note["n_descdata"], "little")
        for segment in oracle.iter_segments("PT_NOTE")
        for note in segment.iter_notes()
        if note["n_name"] == "Xen" and note["n_type"] == 18
    ]
