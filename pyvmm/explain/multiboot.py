"""Multiboot 1: the header that a kernel may have in its first 8 KiB, be it an ELF file or not.

Specification: Multiboot Specification 0.6.96, 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.errors import KernelImageError
from pyvmm.explain.fields import BitSpec, FieldSpec, address, read_fields
from pyvmm.explain.model import Section
from pyvmm.loader.load import Placement
from pyvmm.loader.multiboot import (
    ADDRESS_FIELDS,
    ALIGN_MODULES,
    MEMORY_INFO,
    VIDEO_MODE,
    find_header,
    place_by_header,
)

_FLAGS = (
    BitSpec("ALIGN_MODULES", ALIGN_MODULES, "demands: modules aligned to 4 KiB"),
    BitSpec("MEMORY_INFO", MEMORY_INFO, "demands: to be told of its memory"),
    BitSpec("VIDEO_MODE", VIDEO_MODE, "recommends a video mode, which pyvmm has not"),
    BitSpec("ADDRESS_FIELDS", ADDRESS_FIELDS, "offers: the addresses below, instead of ELF's"),
)
_HEADER = (
    FieldSpec("magic", 4, "0x1badb002"),
    FieldSpec("flags", 4, "bits 0 to 15: demands; 16 to 31: offers", hex, _FLAGS),
    FieldSpec("checksum", 4, "the three add up to 0"),
)
_ADDRESSES = (
    FieldSpec("header_addr", 4, "where this header itself goes", address),
    FieldSpec("load_addr", 4, "where the first byte that is loaded goes", address),
    FieldSpec("load_end_addr", 4, "where the last one goes; 0: all of the file", address),
    FieldSpec("bss_end_addr", 4, "where the zeros behind it end; 0: there are none", address),
    FieldSpec("entry_addr", 4, "the entry", address),
)


def describe(data: memoryview) -> Iterator[Section]:
    """The section about the header in ``data``; none if there is none."""
    header = find_header(data)
    if header is None:
        return
    specs = _HEADER + _ADDRESSES if header.has_addresses else _HEADER
    yield Section(
        "multiboot_header",
        "Multiboot header",
        "Multiboot Specification 0.6.96, 3.1",
        "By this the kernel asks to be entered as GRUB does it, in 32-bit protected mode.",
        read_fields(data, header.offset, specs),
    )


def segments(data: memoryview) -> list[Placement]:
    """What the header's addresses say of the place of ``data``; nothing if they contradict."""
    header = find_header(data)
    if header is None or not header.has_addresses:
        return []
    try:
        part = place_by_header(header, len(data))
    except KernelImageError:
        return []
    return [Placement("kernel", part.load_gpa, part.memory_bytes)]
