"""PVH: the x86/HVM direct boot ABI. 32-bit, paging off, EBX at ``hvm_start_info``.

The page at START_INFO_GPA holds the structure, then the module list, then the memory map:

    start_info            56 bytes
    modlist[n]            32 bytes each: the initrd, and what else was given
    memmap[n]             24 bytes each
    strings               the modules' command lines, each with its NUL

A kernel says that it can be entered so, and where, in an ELF note (loader/elf.py).

Specification: xen docs/misc/pvh.pandoc (entry state), xen/include/public/arch-x86/hvm/start_info.h
(structures, version 1).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.arch.x86_64 import layout, registers
from pyvmm.boot.handover import Blob, BootPlan
from pyvmm.errors import KernelImageError

if TYPE_CHECKING:
    from pyvmm.boot.handover import Handover

START_MAGIC = 0x336E_C578  # XEN_HVM_START_MAGIC_VALUE
VERSION_WITH_MEMORY_MAP = 1

_START_INFO = struct.Struct("<IIIIQQQQII")
_MODLIST_ENTRY = struct.Struct("<QQQQ")
_MEMMAP_ENTRY = struct.Struct("<QQII")


class StartInfo(NamedTuple):
    """``struct hvm_start_info``. An address of 0 means "not there"."""

    magic: int
    version: int
    flags: int
    nr_modules: int
    modlist_paddr: int
    cmdline_paddr: int
    rsdp_paddr: int
    memmap_paddr: int
    memmap_entries: int
    reserved: int = 0

    def pack(self) -> bytes:
        """Its bytes in guest memory."""
        return _START_INFO.pack(*self)


class ModlistEntry(NamedTuple):
    """``struct hvm_modlist_entry``: one module; the first is the initrd."""

    paddr: int
    size: int
    cmdline_paddr: int = 0
    reserved: int = 0

    def pack(self) -> bytes:
        """Its bytes in guest memory."""
        return _MODLIST_ENTRY.pack(*self)


class MemmapTableEntry(NamedTuple):
    """``struct hvm_memmap_table_entry``: the types are those of e820."""

    addr: int
    size: int
    type: int
    reserved: int = 0

    def pack(self) -> bytes:
        """Its bytes in guest memory."""
        return _MEMMAP_ENTRY.pack(*self)


def plan(handover: Handover, entry_gpa: int) -> BootPlan:
    """Enter at ``entry_gpa`` in 32-bit protected mode with ``start_info`` filled in.

    Raises KernelImageError if the page has no room for all of it.
    """
    memmap = b"".join(MemmapTableEntry(*entry).pack() for entry in handover.memory_map)
    modlist_gpa = layout.START_INFO_GPA + _START_INFO.size
    memmap_gpa = modlist_gpa + len(handover.modules) * _MODLIST_ENTRY.size
    strings_gpa = memmap_gpa + len(memmap)
    modlist = b""
    strings = b""
    for placement, _name, cmdline in handover.modules:
        cmdline_gpa = strings_gpa + len(strings) if cmdline else 0
        strings += cmdline + b"\x00" if cmdline else b""
        modlist += ModlistEntry(placement.base_gpa, placement.size_bytes, cmdline_gpa).pack()
    _check_room(handover, memmap_gpa, strings_gpa, strings_gpa + len(strings))
    start_info = StartInfo(
        magic=START_MAGIC,
        version=VERSION_WITH_MEMORY_MAP,
        flags=0,
        nr_modules=len(handover.modules),
        modlist_paddr=modlist_gpa if modlist else 0,
        cmdline_paddr=handover.cmdline.base_gpa,
        rsdp_paddr=handover.rsdp_gpa,
        memmap_paddr=memmap_gpa,
        memmap_entries=len(handover.memory_map),
    )
    entry = registers.protected_mode(entry_gpa, rbx=layout.START_INFO_GPA)
    blobs = [
        Blob("GDT", layout.GDT_GPA, entry.gdt, rule="gdt-ram"),
        Blob("start_info", layout.START_INFO_GPA, start_info.pack(), rule="pvh-start-info-ram"),
        Blob("PVH memory map", memmap_gpa, memmap, rule="pvh-memmap-ram"),
    ]
    if modlist:
        blobs.append(Blob("module list", modlist_gpa, modlist, rule="pvh-modlist-ram"))
    if strings:
        blobs.append(Blob("module strings", strings_gpa, strings, rule="pvh-strings-ram"))
    return BootPlan(blobs, entry)


def _check_room(handover: Handover, modlist_end: int, memmap_end: int, strings_end: int) -> None:
    """Each part must end within the page."""
    end_gpa = layout.START_INFO_GPA + layout.START_INFO_MAX_BYTES
    modules, ranges = len(handover.modules), len(handover.memory_map)
    if modlist_end > end_gpa:
        raise KernelImageError(
            f"is to be given {modules} modules; the page of start_info ends "
            f"{modlist_end - end_gpa} bytes before the list of them does; give fewer",
            "pvh-modlist-room",
        )
    if memmap_end > end_gpa:
        raise KernelImageError(
            f"is to be given a memory map of {ranges} entries beside {modules} modules; the page "
            f"of start_info ends {memmap_end - end_gpa} bytes before it does; give fewer modules",
            "pvh-memmap-room",
        )
    if strings_end > end_gpa:
        raise KernelImageError(
            f"is to be given {modules} modules with arguments; the page of start_info ends "
            f"{strings_end - end_gpa} bytes before these do; give shorter ones, or fewer modules",
            "pvh-strings-room",
        )
