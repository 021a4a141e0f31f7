"""Multiboot 1: the header by which a kernel asks a boot loader to be put into memory.

It stands anywhere in the first 8192 bytes of the file, aligned to 4:

    magic           0x1badb002
    flags           bits 0-15: what the kernel demands; 16-31: what it offers
    checksum        the three add up to 0
    header_addr     these five if flags has bit 16: where the header itself goes in memory,
    load_addr       where the text begins there,
    load_end_addr   where the data ends, 0: at the end of the file,
    bss_end_addr    where the zeros behind it end, 0: there are none,
    entry_addr      and where to enter, in 32-bit protected mode

A kernel without bit 16 is an ELF file, loaded and entered as such. With it the file's format does
not matter, even if it is ELF: it is copied from where load_addr is in it. ELF64 kernels have these
fields because loaders take no other ELF64, and some kernels name their BSS nowhere else.

Specification: Multiboot Specification 0.6.96, 3.1. Left out: the video mode of bit 2, a
recommendation (3.1.4), as the information's flags tell the kernel that there is none; and a.out's
symbols.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import KernelImageError

if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC = 0x1BADB002
SEARCH_BYTES = 8192
ALIGNMENT = 4

ALIGN_MODULES = 1 << 0  # to 4 KiB, which ours always are
MEMORY_INFO = 1 << 1
VIDEO_MODE = 1 << 2
KNOWN_DEMANDS = ALIGN_MODULES | MEMORY_INFO | VIDEO_MODE
DEMANDS_MASK = 0xFFFF
ADDRESS_FIELDS = 1 << 16

_MAGIC_BYTES = MAGIC.to_bytes(4, "little")
_FIXED = struct.Struct("<III")
_ADDRESSES = struct.Struct("<IIIII")


class MultibootHeader(NamedTuple):
    """A header that was found. The addresses are 0 without ADDRESS_FIELDS."""

    offset: int
    """Where it is in the file."""
    flags: int
    header_addr: int = 0
    load_addr: int = 0
    load_end_addr: int = 0
    bss_end_addr: int = 0
    entry_addr: int = 0

    @property
    def has_addresses(self) -> bool:
        """Whether it says by itself how the file is loaded."""
        return bool(self.flags & ADDRESS_FIELDS)


class MultibootImage(NamedTuple):
    """What a header with addresses comes to: this part of the file goes there."""

    offset: int
    load_gpa: int
    file_bytes: int
    memory_bytes: int
    entry_gpa: int


def find_header(data: memoryview) -> MultibootHeader | None:
    """The first header in ``data`` whose checksum is right; None if there is none."""
    start = bytes(data[:SEARCH_BYTES])
    for offset in _aligned_magics(start):
        if offset + _FIXED.size > len(start):
            break
        magic, flags, checksum = _FIXED.unpack_from(start, offset)
        if (magic + flags + checksum) & 0xFFFF_FFFF:
            continue
        header = MultibootHeader(offset, flags)
        addresses_offset = offset + _FIXED.size
        if not header.has_addresses:
            return header
        if addresses_offset + _ADDRESSES.size <= len(start):
            return MultibootHeader(offset, flags, *_ADDRESSES.unpack_from(start, addresses_offset))
    return None


def _aligned_magics(start: bytes) -> Iterator[int]:
    offset = start.find(_MAGIC_BYTES)
    while offset >= 0:
        if offset % ALIGNMENT == 0:
            yield offset
        offset = start.find(_MAGIC_BYTES, offset + 1)


def check_demands(header: MultibootHeader) -> None:
    """Raise KernelImageError if the kernel demands what there is not."""
    unknown = header.flags & DEMANDS_MASK & ~KNOWN_DEMANDS
    if unknown:
        raise KernelImageError(
            f"demands something unknown in its Multiboot header (flags {header.flags:#x}); "
            "expected no bits but 0 to 2 of the lower 16; build it without",
            "multiboot-flags",
        )


def place_by_header(header: MultibootHeader, size_bytes: int) -> MultibootImage:
    """How a file of ``size_bytes`` is loaded by the ``header``'s addresses.

    Raises KernelImageError if they contradict each other, or the file.
    """
    before_header = header.header_addr - header.load_addr
    offset = header.offset - before_header
    if before_header < 0 or offset < 0:
        raise KernelImageError(
            f"has header_addr {header.header_addr:#x} and load_addr {header.load_addr:#x} in its "
            f"Multiboot header, which is at {header.offset:#x} in the file; expected load_addr "
            "not above it, and not before the file's first byte; the image is damaged",
            "multiboot-load-addr",
        )
    end_addr = header.load_end_addr or header.load_addr + size_bytes - offset
    file_bytes = end_addr - header.load_addr
    if file_bytes <= 0 or offset + file_bytes > size_bytes:
        raise KernelImageError(
            f"has load_addr {header.load_addr:#x} and load_end_addr {end_addr:#x} in its Multiboot "
            f"header; expected them in this order, and what is between them in the file, which "
            f"ends {size_bytes - offset:#x} bytes behind load_addr; the image is damaged or cut "
            "off",
            "multiboot-load-end-addr",
        )
    bss_end_addr = header.bss_end_addr or end_addr
    if bss_end_addr < end_addr:
        raise KernelImageError(
            f"has bss_end_addr {bss_end_addr:#x} in its Multiboot header; expected 0, or "
            f"{end_addr:#x}, where its data ends, or above; the image is damaged",
            "multiboot-bss-end-addr",
        )
    if not header.load_addr <= header.entry_addr < bss_end_addr:
        raise KernelImageError(
            f"has entry_addr {header.entry_addr:#x} in its Multiboot header; expected it in what "
            f"is loaded, {header.load_addr:#x}..{bss_end_addr:#x}; the image is damaged",
            "multiboot-entry-addr",
        )
    memory_bytes = bss_end_addr - header.load_addr
    return MultibootImage(offset, header.load_addr, file_bytes, memory_bytes, header.entry_addr)
