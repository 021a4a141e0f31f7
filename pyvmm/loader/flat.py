"""Placing an Image: what arm64 and riscv64 boot is the kernel's memory as it is, behind a header.

    base_gpa        a multiple of 2 MiB
      + text_offset     the Image, entered at its first byte, which is its header
          + file            the BSS, which is not in the file, and what else the kernel
                            uses before it knows its memory map
          + image_size  end

Specifications: Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-header.rst and
arch/riscv/boot.rst.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import GuestMemoryError, KernelImageError
from pyvmm.units import MiB

if TYPE_CHECKING:
    from pyvmm.loader.image import KernelImage
    from pyvmm.memory import GuestMemory

BASE_ALIGNMENT = 2 * MiB


class PlacedImage(NamedTuple):
    """An Image in guest memory, from its first byte, where it is entered, to its end."""

    entry_gpa: int
    end_gpa: int
    """The end of what the kernel uses before it knows its memory map: its BSS is below."""


def place(
    image: KernelImage, memory: GuestMemory, base_gpa: int, text_offset: int, size_bytes: int
) -> PlacedImage:
    """Put ``image`` at ``text_offset`` from ``base_gpa``, with ``size_bytes`` of room for it.

    Raises KernelImageError if that is no place for it.
    """
    if base_gpa % BASE_ALIGNMENT:
        raise KernelImageError(
            f"{image.name}: cannot be placed from {base_gpa:#x}; expected a multiple of 2 MiB",
            "image-base-alignment",
        )
    entry_gpa = base_gpa + text_offset
    room_bytes = max(size_bytes, len(image.data))
    if not memory.contains(entry_gpa, room_bytes):
        ram = ", ".join(f"{region.base_gpa:#x}..{region.end_gpa:#x}" for region in memory)
        raise KernelImageError(
            f"{image.name}: needs {room_bytes:#x} bytes at {entry_gpa:#x}; RAM is {ram}; give the "
            "guest more memory, or another base",
            "image-ram",
        )
    try:
        if image.fd is not None:
            memory.read_file(entry_gpa, image.fd, 0, len(image.data))
        else:
            memory.write(entry_gpa, image.data)
    except (GuestMemoryError, OSError) as error:
        raise KernelImageError(f"{image.name}: {error}", "file-read") from error
    memory.fill_zero(entry_gpa + len(image.data), room_bytes - len(image.data))
    return PlacedImage(entry_gpa, entry_gpa + room_bytes)
