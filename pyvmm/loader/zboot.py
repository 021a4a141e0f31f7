"""EFI zboot: a compressed Image behind an EFI program that decompresses it.

    0x00   "MZ"             a PE file (pe.py) in whose MS-DOS header this is
    0x04   "zimg"
    0x08   payload offset   4 bytes
    0x0c   payload size     4 bytes
    0x10   reserved         8 bytes
    0x18   compression      text of up to 32 bytes: gzip, lz4, lzma, lzo, xzkern, zstd22
    0x38   0x818223cd       "this is Linux", for boot loaders
    0x3c   e_lfanew

The size of what is in it follows the compressed stream, as in a bzImage; but for gzip's, whose own
last field it is, the payload size does not count it. arm64, riscv64 and LoongArch have such images.

Specification: Linux 6.12, drivers/firmware/efi/libstub/zboot-header.S and Makefile.zboot.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader.decompress import SIZE_BYTES
from pyvmm.loader.pe import MZ_MAGIC

MAGIC = b"zimg"
MAGIC_OFFSET = 4
MAGIC_END = MAGIC_OFFSET + len(MAGIC)

_HEADER = struct.Struct("<4s4sII8x32sII")


class Zboot(NamedTuple):
    """Where in the file the compressed Image is, the size behind it counted."""

    compression: str
    payload_offset: int
    payload_bytes: int


def is_zboot(data: memoryview) -> bool:
    """Whether ``data`` begins as such an image does."""
    return data[: len(MZ_MAGIC)] == MZ_MAGIC and data[MAGIC_OFFSET:MAGIC_END] == MAGIC


def parse(data: memoryview) -> Zboot:
    """The header of ``data``, for which ``is_zboot`` holds.

    Raises KernelImageError if it is not all there, or the payload is not.
    """
    if len(data) < _HEADER.size:
        raise KernelImageError(
            f"is an EFI zboot image cut off after {len(data)} bytes; its header alone has "
            f"{_HEADER.size}; get a complete copy",
            "zboot-header",
        )
    _, _, offset, size_bytes, name, _, _ = _HEADER.unpack_from(data)
    compression = name.partition(b"\x00")[0].decode("ascii", "backslashreplace")
    if compression != "gzip":
        size_bytes += SIZE_BYTES
    if offset < _HEADER.size or offset + size_bytes > len(data):
        raise KernelImageError(
            f"is an EFI zboot image whose kernel should be at {offset:#x}..{offset + size_bytes:#x}"
            f" of the file; expected it behind the header, within the {len(data):#x} bytes that "
            "there are; get a complete copy",
            "zboot-payload",
        )
    return Zboot(compression, offset, size_bytes)
