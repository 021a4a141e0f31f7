"""``struct boot_params``, the "zero page" that both Linux protocols hand to the kernel.

It starts as zeros. A bzImage's own setup header goes to offset 0x1f1, exactly as long as the
header says it is (more would carry the image's sentinel over, which tells the kernel that its
loader was careless); a vmlinux has none and gets a minimal one. Then the loader's fields.

    0x000  screen_info              0x1e8  e820_entries
    0x070  acpi_rsdp_addr           0x1f1  hdr: the setup header
    0x0c0  ext_ramdisk_image, ..    0x250    its setup_data: leads to a list elsewhere
    0x0c8  ext_cmd_line_ptr         0x2d0  e820_table[128]

Offsets: arch/x86/include/uapi/asm/bootparam.h (checked against the C compiler in the tests);
meaning: Documentation/arch/x86/boot.rst and zero-page.rst.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import layout
from pyvmm.boot.handover import Blob
from pyvmm.errors import GuestMemoryError, KernelImageError
from pyvmm.units import MiB, align_up

if TYPE_CHECKING:
    from pyvmm.boot.handover import Handover

SIZE_BYTES = 4096
E820_MAX_ENTRIES = 128

_E820_ENTRY = struct.Struct("<QQI")
_SETUP_DATA_HEADER = struct.Struct("<QII")  # struct setup_data: next, type, len

SETUP_RNG_SEED = 9  # arch/x86/include/uapi/asm/setup_data.h
SETUP_INDIRECT = 1 << 31  # asm/bootparam.h: a type with this bit has its data elsewhere


class Field(NamedTuple):
    """A field of boot_params: its offset and its size in bytes. All are unsigned."""

    offset: int
    size: int


SCREEN_INFO = Field(0x000, 64)
ACPI_RSDP_ADDR = Field(0x070, 8)
EXT_RAMDISK_IMAGE = Field(0x0C0, 4)
EXT_RAMDISK_SIZE = Field(0x0C4, 4)
EXT_CMD_LINE_PTR = Field(0x0C8, 4)
E820_ENTRIES = Field(0x1E8, 1)
SETUP_HEADER = Field(0x1F1, 0x290 - 0x1F1)
BOOT_FLAG = Field(0x1FE, 2)
HEADER_MAGIC = Field(0x202, 4)
VERSION = Field(0x206, 2)
TYPE_OF_LOADER = Field(0x210, 1)
LOADFLAGS = Field(0x211, 1)
CODE32_START = Field(0x214, 4)
RAMDISK_IMAGE = Field(0x218, 4)
RAMDISK_SIZE = Field(0x21C, 4)
CMD_LINE_PTR = Field(0x228, 4)
KERNEL_ALIGNMENT = Field(0x230, 4)
SETUP_DATA = Field(0x250, 8)
E820_TABLE = Field(0x2D0, E820_MAX_ENTRIES * _E820_ENTRY.size)

BOOT_FLAG_VALUE = 0xAA55
HEADER_MAGIC_VALUE = int.from_bytes(b"HdrS", "little")
PROTOCOL_2_12 = 0x020C
"""The version that a kernel's own PVH entry claims, too: enough for all fields used here."""

TYPE_OF_LOADER_UNDEFINED = 0xFF
"""No id of our own is registered. 0 would mean a loader too old to have passed an initrd."""

LOADED_HIGH = 1 << 0
KASLR_FLAG = 1 << 1
QUIET_FLAG = 1 << 5
KEEP_SEGMENTS = 1 << 6
CAN_USE_HEAP = 1 << 7


def setup_data(handover: Handover) -> list[Blob]:
    """The list that ``setup_data`` begins: the seed of the kernel's random numbers (Linux 6.0).

    It has only nodes of types that the kernel knows, if it says which those are (kernel_info).
    """
    nodes = [(SETUP_RNG_SEED, handover.rng_seed)] if handover.rng_seed else []
    info = handover.kernel.kernel_info
    if info is not None:
        nodes = [node for node in nodes if node[0] <= info.setup_type_max & ~SETUP_INDIRECT]
    if not nodes:
        return []
    data = setup_data_list(nodes, layout.SETUP_DATA_GPA)
    return [Blob("setup_data", layout.SETUP_DATA_GPA, data, rule="setup-data-ram")]


def setup_data_list(nodes: list[tuple[int, bytes]], base_gpa: int) -> bytes:
    """``struct setup_data`` for each (type, data) of ``nodes``, one linked to the next.

    Raises GuestMemoryError if they need more room than there is up to the command line.
    """
    packed = b""
    for index, (kind, data) in enumerate(nodes):
        size_bytes = align_up(_SETUP_DATA_HEADER.size + len(data), 8)
        is_last = index == len(nodes) - 1
        next_gpa = 0 if is_last else base_gpa + len(packed) + size_bytes
        node = _SETUP_DATA_HEADER.pack(next_gpa, kind, len(data)) + data
        packed += node if is_last else node.ljust(size_bytes, b"\x00")
    if len(packed) > layout.SETUP_DATA_MAX_BYTES:
        raise GuestMemoryError(
            f"the setup_data has {len(packed)} bytes; there is room for "
            f"{layout.SETUP_DATA_MAX_BYTES} below the command line; hand over less",
            "setup-data-room",
        )
    return packed


def blobs(handover: Handover) -> list[Blob]:
    """The zero page for ``handover``, and what it leads to."""
    page = Blob("boot_params", layout.BOOT_PARAMS_GPA, build(handover), rule="boot-params-ram")
    return [page, *setup_data(handover)]


def build(handover: Handover) -> bytes:
    """The zero page for ``handover``: 4096 bytes.

    Raises KernelImageError if the kernel's header claims to be longer than the place for it,
    GuestMemoryError if the memory map does.
    """
    page = bytearray(SIZE_BYTES)

    def put(field: Field, value: int) -> None:
        page[field.offset : field.offset + field.size] = value.to_bytes(field.size, "little")

    header = handover.kernel.setup_header
    if header is None:
        put(BOOT_FLAG, BOOT_FLAG_VALUE)
        put(HEADER_MAGIC, HEADER_MAGIC_VALUE)
        put(VERSION, PROTOCOL_2_12)
        put(LOADFLAGS, LOADED_HIGH)
        put(KERNEL_ALIGNMENT, 16 * MiB)
    else:
        if len(header.raw) > SETUP_HEADER.size:
            raise KernelImageError(
                f"the bzImage's setup header is {len(header.raw)} bytes long; boot_params has "
                f"place for {SETUP_HEADER.size}; the image is damaged",
                "boot-params-header",
            )
        page[SETUP_HEADER.offset : SETUP_HEADER.offset + len(header.raw)] = header.raw
        if handover.kernel.linux32_entry_gpa is not None:
            put(CODE32_START, handover.kernel.linux32_entry_gpa)
        put(LOADFLAGS, page[LOADFLAGS.offset] & ~(CAN_USE_HEAP | QUIET_FLAG | KEEP_SEGMENTS) & 0xFF)

    if handover.screen_info is not None:
        page[SCREEN_INFO.offset : SCREEN_INFO.offset + SCREEN_INFO.size] = (
            handover.screen_info.pack()
        )
    if handover.kernel.move is not None:
        put(LOADFLAGS, page[LOADFLAGS.offset] | KASLR_FLAG)
    put(TYPE_OF_LOADER, TYPE_OF_LOADER_UNDEFINED)
    put(CMD_LINE_PTR, handover.cmdline.base_gpa & 0xFFFF_FFFF)
    put(EXT_CMD_LINE_PTR, handover.cmdline.base_gpa >> 32)
    if handover.initrd is not None:
        put(RAMDISK_IMAGE, handover.initrd.base_gpa & 0xFFFF_FFFF)
        put(RAMDISK_SIZE, handover.initrd.size_bytes & 0xFFFF_FFFF)
        put(EXT_RAMDISK_IMAGE, handover.initrd.base_gpa >> 32)
        put(EXT_RAMDISK_SIZE, handover.initrd.size_bytes >> 32)
    put(ACPI_RSDP_ADDR, handover.rsdp_gpa)
    for blob in setup_data(handover):
        put(SETUP_DATA, blob.gpa)
    if len(handover.memory_map) > E820_MAX_ENTRIES:
        raise GuestMemoryError(
            f"the memory map has {len(handover.memory_map)} entries; boot_params has place for "
            f"{E820_MAX_ENTRIES} (e820_table); merge some",
            "boot-params-e820-entries",
        )
    put(E820_ENTRIES, len(handover.memory_map))
    for index, entry in enumerate(handover.memory_map):
        _E820_ENTRY.pack_into(page, E820_TABLE.offset + index * _E820_ENTRY.size, *entry)
    return bytes(page)
