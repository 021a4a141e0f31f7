"""Guest memory as other machines have it: one region, which does not begin at 0."""

from __future__ import annotations

import mmap

from pyvmm.memory import GuestMemory, GuestRegion


def ram_at(base_gpa: int, size_bytes: int, fill: bytes = b"\x00") -> GuestMemory:
    """RAM of ``size_bytes`` at ``base_gpa``, each byte of it ``fill``."""
    buffer = mmap.mmap(-1, size_bytes)
    if fill != b"\x00":
        buffer.write(fill * size_bytes)
    return GuestMemory([GuestRegion(base_gpa, size_bytes, buffer, fd=None)])
