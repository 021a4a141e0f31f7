"""The riscv64 Image: a kernel for other machines than ours, parsed and placed on any host.

    0x00   code0, code1   4 bytes each; code0 is "MZ" with an EFI stub
    0x08   text_offset    8 bytes: where it goes, from a 2 MiB-aligned base
    0x10   image_size     8 bytes: how much memory it needs
    0x18   flags          8 bytes
    0x20   version        4 bytes: major and minor number; then 4 reserved
    0x28   res2           8 bytes
    0x30   magic          "RISCV\\0\\0\\0"; obsolete since version 0.2
    0x38   magic2         "RSC\\x05"
    0x3c   res3           4 bytes: where the PE header is

Specification: Documentation/arch/riscv/boot-image-header.rst (Linux 6.12).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader import flat
from pyvmm.loader.image import RISCV64_MAGIC2

if TYPE_CHECKING:
    from pyvmm.loader.flat import PlacedImage
    from pyvmm.loader.image import KernelImage
    from pyvmm.memory import GuestMemory

FLAG_BIG_ENDIAN = 1 << 0

_HEADER = struct.Struct("<IIQQQIIQ8s4sI")


class Riscv64Header(NamedTuple):
    """The header, its fields by boot-image-header.rst's names."""

    code0: int
    code1: int
    text_offset: int
    image_size: int
    flags: int
    version: int
    res1: int
    res2: int
    magic: bytes
    magic2: bytes
    res3: int

    @property
    def version_text(self) -> str:
        """The header's version as people write it: ``0.2``."""
        return f"{self.version >> 16}.{self.version & 0xFFFF}"

    @property
    def is_big_endian(self) -> bool:
        """The kernel's byte order. The header is little-endian all the same."""
        return bool(self.flags & FLAG_BIG_ENDIAN)


def parse(data: memoryview) -> Riscv64Header:
    """The header of ``data``.

    Raises KernelImageError if it is not there, or does not say how large the kernel is.
    """
    if len(data) < _HEADER.size:
        raise KernelImageError(
            f"is a riscv64 Image cut off after {len(data)} bytes; its header alone has "
            f"{_HEADER.size}; get a complete copy",
            "riscv64-header-size",
        )
    header = Riscv64Header._make(_HEADER.unpack_from(data))
    if header.magic2 != RISCV64_MAGIC2[1]:
        raise KernelImageError(
            f"has the bytes {header.magic2.hex(' ')} at 0x38; expected those of a riscv64 Image "
            "(52 53 43 05)",
            "riscv64-magic2",
        )
    if header.image_size == 0:
        raise KernelImageError(
            "is a riscv64 Image with an image_size of 0 in its header; expected how much memory it "
            "needs, without which it cannot be placed; use Linux 5.3 or later",
            "riscv64-image-size",
        )
    return header


def place(image: KernelImage, memory: GuestMemory, base_gpa: int) -> PlacedImage:
    """Place the riscv64 ``image`` in ``memory``; ``base_gpa`` is a multiple of 2 MiB.

    Raises KernelImageError, with the image's name in front.
    """
    try:
        header = parse(image.data)
    except KernelImageError as error:
        raise error.about(image.name) from error
    return flat.place(image, memory, base_gpa, header.text_offset, header.image_size)
