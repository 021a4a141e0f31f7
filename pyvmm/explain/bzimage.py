"""bzImage: what its setup header says, field by field, and what the file is made of.

Specification: Documentation/arch/x86/boot.rst (Linux 6.12), "The Real-Mode Kernel Header", "Details
of Header Fields" and "The kernel_info"; the flags that it leaves out: arch/x86/include/uapi/asm/
bootparam.h.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pyvmm.errors import KernelImageError
from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    address,
    cell,
    decimal,
    human_size,
    magic,
    one_of,
    read_fields,
    size,
    text_cell,
    values_of,
)
from pyvmm.explain.model import Cell, Column, Field, Section, Table, printable
from pyvmm.loader import bzimage
from pyvmm.loader.bzimage import (
    HEADER_OFFSET,
    JUMP_OFFSET,
    JUMP_SHORT,
    MAGIC_OFFSET,
    PARAGRAPH_BYTES,
    SECTOR_BYTES,
)
from pyvmm.loader.linux_version import version_text
from pyvmm.loader.load import Placement
from pyvmm.units import align_down

_BOOT_RST = "Documentation/arch/x86/boot.rst"


def _version(value: int) -> str:
    return f"{value >> 8}.{value & 0xFF:02}"


def _jump(value: int) -> str:
    """The two bytes as the assembler has them, and where they end the header."""
    opcode, displacement = value & 0xFF, value >> 8
    shown = f"{opcode:02x} {displacement:02x}"
    return f"{shown} (to {MAGIC_OFFSET + displacement:#x})" if opcode == 0xEB else shown


def _sectors(value: int) -> str:
    return f"{value} (kernel at {((value or 4) + 1) * SECTOR_BYTES:#x})"


def _paragraphs(value: int) -> str:
    return f"{value:#x} ({human_size(value * PARAGRAPH_BYTES)})"


def _version_string(value: int) -> str:
    return f"{value:#x} (at {value + 0x200:#x})" if value else "0"


def _power(value: int) -> str:
    return f"{value} ({human_size(1 << value)})" if value < 64 else str(value)


_LOADFLAGS = (
    BitSpec("LOADED_HIGH", 1 << 0, "a bzImage, to be loaded at 1 MiB or above; else a zImage"),
    BitSpec("KASLR_FLAG", 1 << 1, "the kernel's own: its decompressor has chosen an address"),
    BitSpec("QUIET_FLAG", 1 << 5, "written by the loader: no early messages"),
    BitSpec("KEEP_SEGMENTS", 1 << 6, "obsolete"),
    BitSpec("CAN_USE_HEAP", 1 << 7, "written by the loader: heap_end_ptr is valid"),
)
_XLOADFLAGS = (
    BitSpec("XLF_KERNEL_64", 1 << 0, "has the 64-bit entry, at 0x200 of the kernel"),
    BitSpec("XLF_CAN_BE_LOADED_ABOVE_4G", 1 << 1, "it and its parameters may be above 4 GiB"),
    BitSpec("XLF_EFI_HANDOVER_32", 1 << 2, "has the 32-bit EFI handover entry"),
    BitSpec("XLF_EFI_HANDOVER_64", 1 << 3, "has the 64-bit EFI handover entry"),
    BitSpec("XLF_EFI_KEXEC", 1 << 4, "can be started by kexec with EFI's runtime services"),
    BitSpec("XLF_5LEVEL", 1 << 5, "can run with 5-level page tables"),
    BitSpec("XLF_5LEVEL_ENABLED", 1 << 6, "is built to use 5-level page tables"),
    BitSpec("XLF_MEM_ENCRYPTION", 1 << 7, "can run in encrypted memory"),
)
_SUBARCHS = {0: "PC", 1: "lguest", 2: "Xen", 3: "Moorestown", 4: "CE4100"}


class _Since(NamedTuple):
    """Fields that came with a version of the protocol."""

    version: int
    fields: tuple[FieldSpec, ...]


_SETUP_HEADER = (
    _Since(
        0,
        (
            FieldSpec("setup_sects", 1, "512-byte sectors of setup code; 0 means 4", _sectors),
            FieldSpec("root_flags", 2, "root is mounted read-only if not 0; deprecated"),
            FieldSpec("syssize", 4, "the kernel's size in 16-byte paragraphs", _paragraphs),
            FieldSpec("ram_size", 2, "obsolete"),
            FieldSpec("vid_mode", 2, "the video mode; 0xffff is normal"),
            FieldSpec("root_dev", 2, "the device number of the root; deprecated"),
            FieldSpec("boot_flag", 2, "0xaa55, as in every boot sector"),
        ),
    ),
    _Since(
        0x0200,
        (
            FieldSpec("jump", 2, "jumps over the header, and so says where it ends", _jump),
            FieldSpec("header", 4, "the magic number: HdrS", magic(4)),
            FieldSpec("version", 2, "the boot protocol's version", _version),
            FieldSpec("realmode_swtch", 4, "a hook for boot loaders"),
            FieldSpec("start_sys_seg", 2, "obsolete"),
            FieldSpec(
                "kernel_version", 2, "where the version string is, less 0x200", _version_string
            ),
            FieldSpec("type_of_loader", 1, "written by the loader: who it is"),
            FieldSpec("loadflags", 1, "how to load it", hex, _LOADFLAGS),
            FieldSpec("setup_move_size", 2, "written by loaders of protocol 2.01 and before"),
            FieldSpec("code32_start", 4, "where it is loaded if not relocatable", address),
            FieldSpec("ramdisk_image", 4, "written by the loader: where the initrd is"),
            FieldSpec("ramdisk_size", 4, "written by the loader: the initrd's size"),
            FieldSpec("bootsect_kludge", 4, "obsolete"),
        ),
    ),
    _Since(
        0x0201,
        (FieldSpec("heap_end_ptr", 2, "written by the loader: where the setup's heap ends"),),
    ),
    _Since(
        0x0202,
        (
            FieldSpec("ext_loader_ver", 1, "written by the loader: more of its version"),
            FieldSpec("ext_loader_type", 1, "written by the loader: more of who it is"),
            FieldSpec("cmd_line_ptr", 4, "written by the loader: where the command line is"),
        ),
    ),
    _Since(
        0x0203,
        (FieldSpec("initrd_addr_max", 4, "the highest address that an initrd may use", address),),
    ),
    _Since(
        0x0205,
        (
            FieldSpec("kernel_alignment", 4, "the alignment that it is best loaded at", size),
            FieldSpec("relocatable_kernel", 1, "1: may be loaded anywhere so aligned", decimal),
            FieldSpec("min_alignment", 1, "the least alignment, as a power of two", _power),
            FieldSpec("xloadflags", 2, "what more it can do (2.12)", hex, _XLOADFLAGS),
        ),
    ),
    _Since(
        0x0206,
        (FieldSpec("cmdline_size", 4, "the longest command line, without its NUL", decimal),),
    ),
    _Since(
        0x0207,
        (
            FieldSpec(
                "hardware_subarch",
                4,
                "written by the loader: the kind of machine",
                one_of(_SUBARCHS),
            ),
            FieldSpec("hardware_subarch_data", 8, "written by the loader: more of that"),
        ),
    ),
    _Since(
        0x0208,
        (
            FieldSpec("payload_offset", 4, "where in the kernel the compressed vmlinux begins"),
            FieldSpec("payload_length", 4, "its size, the 4 bytes behind it included", size),
        ),
    ),
    _Since(
        0x0209,
        (FieldSpec("setup_data", 8, "written by the loader: a list of more parameters"),),
    ),
    _Since(
        0x020A,
        (
            FieldSpec("pref_address", 8, "where it would best be loaded", address),
            FieldSpec("init_size", 4, "the memory it needs before it looks at its map", size),
        ),
    ),
    _Since(
        0x020B,
        (FieldSpec("handover_offset", 4, "the EFI handover entry, from the kernel's start"),),
    ),
    _Since(
        0x020F,
        (FieldSpec("kernel_info_offset", 4, "where in the kernel kernel_info is"),),
    ),
)

SETUP_HEADER = tuple(spec for since in _SETUP_HEADER for spec in since.fields)
"""All of its fields, in order."""

_KERNEL_INFO = (
    FieldSpec("header", 4, "the magic number: LToP", magic(4)),
    FieldSpec("size", 4, "its size without what is of variable length", decimal),
    FieldSpec("size_total", 4, "its size with that", decimal),
    FieldSpec("setup_type_max", 4, "the highest type of setup_data that it knows"),
)


class BzImageParts(NamedTuple):
    """Where the parts of the file are by its header, whether or not the file is that long."""

    protocol: str
    kernel_offset: int
    kernel_bytes: int
    payload_offset: int
    """In the file; 0 if the header does not say."""
    payload_bytes: int
    version_string: str
    """What the setup code has; empty if nothing."""


def parts(data: memoryview) -> BzImageParts:
    """The parts of ``data``, which has "HdrS" at 0x202."""
    values = values_of(_header_fields(data))
    kernel_offset = ((values.get("setup_sects", 0) or 4) + 1) * SECTOR_BYTES
    payload = values.get("payload_offset", 0)
    return BzImageParts(
        _version(values.get("version", 0)),
        kernel_offset,
        values.get("syssize", 0) * PARAGRAPH_BYTES,
        kernel_offset + payload if payload else 0,
        values.get("payload_length", 0),
        _string_at(data, values.get("kernel_version", 0)),
    )


def payload(data: memoryview) -> memoryview:
    """The compressed vmlinux, as far as the file has it."""
    layout = parts(data)
    return data[layout.payload_offset :][: layout.payload_bytes]


def describe(data: memoryview) -> Iterator[Section]:
    """The sections about the bzImage ``data``, however damaged it is."""
    fields = _header_fields(data)
    values = values_of(fields)
    yield Section(
        "setup_header",
        "Setup header",
        f"{_BOOT_RST}, Details of Header Fields",
        "What the kernel tells a boot loader, and what the loader writes into a copy of it. "
        f"Protocol {_version(values.get('version', 0))}; fields of later ones are not there.",
        fields,
    )
    yield _describe_file(data)
    info = values.get("kernel_info_offset", 0)
    if info:
        yield Section(
            "kernel_info",
            "kernel_info",
            f"{_BOOT_RST}, The kernel_info",
            "More that the kernel tells a loader, in a place that can grow.",
            read_fields(data, parts(data).kernel_offset + info, _KERNEL_INFO),
        )


def segments(data: memoryview) -> list[Placement]:
    """Where it wants to be, and the room behind, if it decompresses itself; nothing if damaged."""
    try:
        bz = bzimage.parse(data)
        load_gpa = bz.load_gpa()
    except KernelImageError:
        return []
    end_gpa = load_gpa + bz.kernel_bytes
    room_bytes = max(0, bz.runtime_start_gpa(load_gpa) + bz.header.init_size - end_gpa)
    return [
        Placement("protected-mode kernel", load_gpa, bz.kernel_bytes),
        Placement("room to decompress itself", end_gpa, room_bytes),
    ]


def _header_fields(data: memoryview) -> tuple[Field, ...]:
    """The fields that the version has, as far as the header's own length goes."""
    version = int.from_bytes(data[0x206:0x208], "little")
    specs = [spec for since in _SETUP_HEADER if since.version <= version for spec in since.fields]
    opcode, displacement = data[JUMP_OFFSET : JUMP_OFFSET + 2]
    end = MAGIC_OFFSET + displacement
    # Without such a jump there is no saying where it ends.
    is_jump = opcode == JUMP_SHORT and MAGIC_OFFSET + 4 <= end < MAGIC_OFFSET + 0x80
    offset = HEADER_OFFSET
    for index, spec in enumerate(specs):
        offset += spec.size
        if is_jump and offset > end:
            specs = specs[:index]
            break
    return read_fields(data, HEADER_OFFSET, specs)


def _string_at(data: memoryview, kernel_version: int) -> str:
    return printable(version_text(data, kernel_version).decode("utf-8", "backslashreplace"))


_COLUMNS = (
    Column("offset", "where it begins in the file"),
    Column("size", "how long it is"),
    Column("part", "what it is"),
)


def _describe_file(data: memoryview) -> Section:
    """What lies where in the file, one part behind the other."""
    layout = parts(data)
    kernel_end = layout.kernel_offset + layout.kernel_bytes
    rows = [
        _part(0, min(SECTOR_BYTES, len(data)), "boot sector, its end the setup header's beginning"),
        _part(SECTOR_BYTES, layout.kernel_offset - SECTOR_BYTES, "real-mode setup code: not used"),
        _part(layout.kernel_offset, layout.kernel_bytes, "protected-mode kernel: a decompressor"),
    ]
    if layout.payload_offset:
        what = "in it, the payload: a compressed vmlinux"
        rows.append(_part(layout.payload_offset, layout.payload_bytes, what))
    # What is not a whole paragraph is the padding of the last one.
    if len(data) > kernel_end:
        rows.append(_part(kernel_end, len(data) - kernel_end, "behind it: a signature, or padding"))
    missing = kernel_end - align_down(len(data) + PARAGRAPH_BYTES - 1, PARAGRAPH_BYTES)
    if missing > 0:
        rows.append(_part(len(data), missing, "missing: the file ends before its header says"))
    return Section(
        "bzimage_parts",
        "Parts of the file",
        f"{_BOOT_RST}, Loading The Rest of The Kernel",
        "",
        table=Table(_COLUMNS, tuple(rows)),
    )


def _part(offset: int, size_bytes: int, what: str) -> tuple[Cell, ...]:
    return (cell(offset), cell(size_bytes, size), text_cell(what))
