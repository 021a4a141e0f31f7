"""Multiboot 1 headers made to order (Multiboot Specification 0.6.96, 3.1)."""

from __future__ import annotations

import struct

MAGIC = 0x1BADB002
ADDRESSES = 1 << 16


def header(flags: int = 0, *addresses: int, checksum: int | None = None) -> bytes:
    """A header; ``addresses`` are header, load, load_end, bss_end and entry."""
    if checksum is None:
        checksum = -(MAGIC + flags) & 0xFFFF_FFFF
    return struct.pack(f"<III{len(addresses)}I", MAGIC, flags, checksum, *addresses)


def image(
    code: bytes,
    *,
    before: bytes = b"",
    load_addr: int = 0x20_0000,
    header_addr: int | None = None,
    load_end_addr: int = 0,
    bss_end_addr: int = 0,
    entry_addr: int | None = None,
) -> bytes:
    """A file with that header and no other: ``before``, header, ``code``; it is loaded whole."""
    if header_addr is None:
        header_addr = load_addr + len(before)
    if entry_addr is None:
        entry_addr = load_addr + len(before) + 32
    addresses = (header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr)
    return before + header(ADDRESSES, *addresses) + code
