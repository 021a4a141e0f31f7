"""FDT: the flattened devicetree, by which arm64 and riscv64 kernels are told of their machine.

    0x00   magic               d0 0d fe ed
    0x04   totalsize           of all of it
    0x08   off_dt_struct       nodes and properties, size_dt_struct bytes, 4-byte aligned
    0x0c   off_dt_strings      the properties' names, size_dt_strings bytes
    0x10   off_mem_rsvmap      memory to keep away from, 8-byte aligned
    0x14   version             17
    0x18   last_comp_version   16: the oldest version whose readers can read it
    0x1c   boot_cpuid_phys
    0x20   size_dt_strings
    0x24   size_dt_struct

All of them big-endian, 4 bytes each. It is checked and placed here; arch/devicetree.py writes one.
Nodes and properties are not looked at: that is for the kernel, which does.

Specifications: Devicetree Specification 0.4, chapter 5; Documentation/arch/arm64/booting.rst,
"Setup the device tree", whose size limit and alignment riscv64 has, too.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import DeviceTreeError
from pyvmm.loader.load import Placement
from pyvmm.units import MiB

if TYPE_CHECKING:
    from pyvmm.memory import GuestMemory

MAGIC = 0xD00DFEED
MAX_BYTES = 2 * MiB
ALIGNMENT = 8
VERSION = 17
"""What is known here. Version 16 has no size_dt_struct, and no kernel of today writes it."""

_HEADER = struct.Struct(">10I")


class FdtHeader(NamedTuple):
    """``struct fdt_header``."""

    magic: int
    totalsize: int
    off_dt_struct: int
    off_dt_strings: int
    off_mem_rsvmap: int
    version: int
    last_comp_version: int
    boot_cpuid_phys: int
    size_dt_strings: int
    size_dt_struct: int


def parse(data: memoryview) -> FdtHeader:
    """The header of ``data``, which may have more behind the devicetree.

    Raises DeviceTreeError if it is none, is not all there, or is larger than a kernel takes.
    """
    if len(data) < _HEADER.size:
        raise DeviceTreeError(
            f"is a devicetree cut off after {len(data)} bytes, or none; its header alone has "
            f"{_HEADER.size}; get a complete copy",
            "fdt-header-size",
        )
    header = FdtHeader._make(_HEADER.unpack_from(data))
    if header.magic != MAGIC:
        raise DeviceTreeError(
            f"begins with the bytes {header.magic:08x}; expected those of a flattened devicetree, "
            f"{MAGIC:08x}; compile it with dtc if it is a source",
            "fdt-magic",
        )
    if header.totalsize > MAX_BYTES:
        raise DeviceTreeError(
            f"is a devicetree of {header.totalsize} bytes; a kernel takes at most {MAX_BYTES}; "
            "leave something out",
            "fdt-size-limit",
        )
    if not _HEADER.size <= header.totalsize <= len(data):
        raise DeviceTreeError(
            f"is a devicetree of {header.totalsize} bytes by its header (totalsize), of which "
            f"there are {len(data)}; get a complete copy",
            "fdt-totalsize",
        )
    if header.version < VERSION or header.last_comp_version > VERSION:
        raise DeviceTreeError(
            f"is a devicetree of version {header.version}, for readers of version "
            f"{header.last_comp_version} and later; expected version {VERSION}; make it with dtc",
            "fdt-version",
        )
    for name, offset, size_bytes, alignment in (
        ("dt_struct", header.off_dt_struct, header.size_dt_struct, 4),
        ("dt_strings", header.off_dt_strings, header.size_dt_strings, 1),
        ("mem_rsvmap", header.off_mem_rsvmap, 16, 8),  # at least the entry that ends it
    ):
        if offset % alignment or not _HEADER.size <= offset <= header.totalsize - size_bytes:
            raise DeviceTreeError(
                f"is a devicetree whose {name} is at {offset:#x}, with {size_bytes:#x} bytes; "
                f"expected a multiple of {alignment}, behind the header, and all of it within the "
                f"{header.totalsize:#x} bytes that it has; it is damaged",
                "fdt-block",
            )
    return header


def place_fdt(data: bytes, memory: GuestMemory, gpa: int) -> Placement:
    """Put the devicetree ``data`` at ``gpa``.

    Raises DeviceTreeError as ``parse`` does, or if that is no place for it.
    """
    size_bytes = parse(memoryview(data)).totalsize
    if gpa % ALIGNMENT:
        raise DeviceTreeError(
            f"the devicetree cannot be placed at {gpa:#x}; expected a multiple of {ALIGNMENT}",
            "fdt-alignment",
        )
    if not memory.contains(gpa, size_bytes):
        ram = ", ".join(f"{region.base_gpa:#x}..{region.end_gpa:#x}" for region in memory)
        raise DeviceTreeError(
            f"the devicetree cannot be placed at {gpa:#x}..{gpa + size_bytes:#x}, which is not "
            f"RAM; RAM is {ram}; choose another place",
            "fdt-ram",
        )
    memory.write(gpa, data[:size_bytes])
    return Placement("devicetree", gpa, size_bytes)
