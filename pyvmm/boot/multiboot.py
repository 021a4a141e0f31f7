"""Multiboot 1: 32-bit protected mode, paging off, EAX the loader's magic, EBX at the information.

The page at START_INFO_GPA, where PVH's structure would be, holds it all:

    information         120 bytes
    modules[n]           16 bytes each: the initrd, and what else was given
    memory map[n]        24 bytes each
    strings              the modules' and the loader's name, each with its NUL

A string begins with the name of the file that it belongs to, the kernel's command line as well:
kernels take the first word off, unless the loader is one that is known not to do so.

Specification: Multiboot Specification 0.6.96, 3.2 (machine state) and 3.3 (information format).
Left out: boot device, symbols, drives, configuration table, APM, VBE and framebuffer, which are
not there; ``flags`` says so.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import bios, layout, registers
from pyvmm.boot.handover import Blob, BootPlan
from pyvmm.errors import KernelImageError
from pyvmm.units import KiB

if TYPE_CHECKING:
    from pyvmm.boot.handover import Handover

BOOTLOADER_MAGIC = 0x2BADB002
BOOT_LOADER_NAME = b"pyvmm\x00"

INFO_MEMORY = 1 << 0
INFO_CMDLINE = 1 << 2
INFO_MODS = 1 << 3
INFO_MMAP = 1 << 6
INFO_BOOT_LOADER_NAME = 1 << 9

# flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr, syms[4], mmap_length,
# mmap_addr, drives_length, drives_addr, config_table, boot_loader_name, apm_table, VBE's six, and
# framebuffer: as long as multiboot.h has it, for kernels that copy the whole.
_INFO = struct.Struct("<20I4H32x")
_MODULE = struct.Struct("<IIII")
_MMAP_ENTRY = struct.Struct("<IQQI")


class Module(NamedTuple):
    """``multiboot_module``: where it lies, ``mod_end`` exclusive, and its string."""

    mod_start: int
    mod_end: int
    string: int
    reserved: int = 0


def plan(handover: Handover, entry_gpa: int) -> BootPlan:
    """Enter at ``entry_gpa`` in 32-bit protected mode with the information filled in.

    Raises KernelImageError if it does not fit into its page.
    """
    modules_gpa = layout.START_INFO_GPA + _INFO.size
    mmap_gpa = modules_gpa + len(handover.modules) * _MODULE.size
    mmap_bytes = len(handover.memory_map) * _MMAP_ENTRY.size
    name_gpa = mmap_gpa + mmap_bytes
    strings = bytearray(BOOT_LOADER_NAME)
    modules = []
    for module in handover.modules:
        string_gpa = name_gpa + len(strings)
        strings += b" ".join(filter(None, [module.name, module.cmdline])) + b"\x00"
        place = module.placement
        modules.append(Module(place.base_gpa, place.end_gpa, string_gpa))

    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MMAP | INFO_BOOT_LOADER_NAME
    if modules:
        flags |= INFO_MODS
    first_high = next(
        (entry for entry in handover.memory_map if entry.base_gpa == layout.HIMEM_GPA), None
    )
    info = _INFO.pack(
        flags,
        handover.memory_map[0].size_bytes // KiB,  # mem_lower: up to the first hole
        first_high.size_bytes // KiB if first_high else 0,  # mem_upper: from 1 MiB to the next one
        0,
        handover.cmdline.base_gpa,
        len(modules),
        modules_gpa if modules else 0,
        *(0, 0, 0, 0),
        mmap_bytes,
        mmap_gpa,
        *(0, 0, 0),
        name_gpa,
        0,
        *(0, 0, 0, 0, 0, 0),
    )
    # An entry's size does not count the field that says it.
    entry_bytes = _MMAP_ENTRY.size - 4
    page = b"".join(
        [
            info,
            *(_MODULE.pack(*module) for module in modules),
            *(_MMAP_ENTRY.pack(entry_bytes, *entry) for entry in handover.memory_map),
            strings,
        ]
    )
    if len(page) > layout.START_INFO_MAX_BYTES:
        raise KernelImageError(
            f"the Multiboot information has {len(page)} bytes with {len(modules)} modules; "
            f"expected at most {layout.START_INFO_MAX_BYTES}; give fewer modules, or shorter "
            "arguments to them",
            "multiboot-info-size",
        )
    entry = registers.protected_mode(entry_gpa, rax=BOOTLOADER_MAGIC, rbx=layout.START_INFO_GPA)
    return BootPlan(
        [
            Blob("real-mode vectors", layout.REAL_MODE_VECTORS_GPA, bios.VECTORS, rule="bios-ram"),
            Blob("GDT", layout.GDT_GPA, entry.gdt, rule="gdt-ram"),
            Blob("BIOS stub", layout.BIOS_STUB_GPA, bios.STUB, rule="bios-ram"),
            Blob("Multiboot information", layout.START_INFO_GPA, page, rule="multiboot-info-ram"),
        ],
        entry,
    )
