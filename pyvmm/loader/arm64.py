"""The arm64 Image: a kernel for other machines than ours, parsed and placed on any host.

    0x00   code0, code1   4 bytes each; code0 is "MZ" with an EFI stub
    0x08   text_offset    8 bytes: where it goes, from a 2 MiB-aligned base
    0x10   image_size     8 bytes: how much memory it needs; 0 before Linux 3.17
    0x18   flags          8 bytes
    0x20   res2 to res4   8 bytes each
    0x38   magic          "ARM\\x64"
    0x3c   res5           4 bytes: where the PE header is

Specification: Documentation/arch/arm64/booting.rst (Linux 6.12).
"""

from __future__ import annotations

import enum
import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.loader import flat
from pyvmm.loader.image import ARM64_MAGIC

if TYPE_CHECKING:
    from pyvmm.loader.flat import PlacedImage
    from pyvmm.loader.image import KernelImage
    from pyvmm.memory import GuestMemory

OLD_TEXT_OFFSET = 0x80000
"""Where an Image without image_size goes, whatever text_offset says: its byte order is unknown."""

# flags, by booting.rst's bits
FLAG_BIG_ENDIAN = 1 << 0
FLAG_PAGE_SIZE_SHIFT, FLAG_PAGE_SIZE_MASK = 1, 0b11
FLAG_ANYWHERE = 1 << 3

_HEADER = struct.Struct("<IIQQQQQQ4sI")


class PageSize(enum.Enum):
    """Bits 1 and 2 of flags: the kernel's page size."""

    UNSPECIFIED = 0
    SIZE_4K = 1
    SIZE_16K = 2
    SIZE_64K = 3


class Arm64Header(NamedTuple):
    """The header, its fields by booting.rst's names."""

    code0: int
    code1: int
    text_offset: int
    image_size: int
    flags: int
    res2: int
    res3: int
    res4: int
    magic: bytes
    res5: int

    @property
    def is_big_endian(self) -> bool:
        """The kernel's byte order. The header is little-endian all the same."""
        return bool(self.flags & FLAG_BIG_ENDIAN)

    @property
    def page_size(self) -> PageSize:
        """The page size that the kernel was built for."""
        return PageSize(self.flags >> FLAG_PAGE_SIZE_SHIFT & FLAG_PAGE_SIZE_MASK)

    @property
    def can_be_anywhere(self) -> bool:
        """Whether the base may be anywhere; else it should be as low as possible.

        Below it, a kernel that cannot be anywhere has no use for memory.
        """
        return bool(self.flags & FLAG_ANYWHERE)

    @property
    def effective_text_offset(self) -> int:
        """Where it goes, from its base: text_offset, if that can be believed."""
        return self.text_offset if self.image_size else OLD_TEXT_OFFSET


def parse(data: memoryview) -> Arm64Header:
    """The header of ``data``.

    Raises KernelImageError if it is not there.
    """
    if len(data) < _HEADER.size:
        raise KernelImageError(
            f"is an arm64 Image cut off after {len(data)} bytes; its header alone has "
            f"{_HEADER.size}; get a complete copy",
            "arm64-header-size",
        )
    header = Arm64Header._make(_HEADER.unpack_from(data))
    if header.magic != ARM64_MAGIC[1]:
        raise KernelImageError(
            f"has the bytes {header.magic.hex(' ')} at 0x38; expected those of an arm64 Image "
            "(41 52 4d 64)",
            "arm64-magic",
        )
    return header


def place(image: KernelImage, memory: GuestMemory, base_gpa: int) -> PlacedImage:
    """Place the arm64 ``image`` in ``memory``; ``base_gpa`` is a multiple of 2 MiB.

    Raises KernelImageError, with the image's name in front.
    """
    try:
        header = parse(image.data)
    except KernelImageError as error:
        raise error.about(image.name) from error
    return flat.place(image, memory, base_gpa, header.effective_text_offset, header.image_size)
