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

    Raises KernelImageError if all that does not fit into its page.
    """
    memmap = [MemmapTableEntry(*entry) for entry in handover.memory_map]
    modlist_gpa = layout.START_INFO_GPA + _START_INFO.size
    memmap_gpa = modlist_gpa + len(handover.modules) * _MODLIST_ENTRY.size
    strings_gpa = memmap_gpa + len(memmap) * _MEMMAP_ENTRY.size
    strings = bytearray()
    modules = []
    for placement, _name, cmdline in handover.modules:
        cmdline_gpa = strings_gpa + len(strings) if cmdline else 0
        strings += cmdline + b"\x00" if cmdline else b""
        modules.append(ModlistEntry(placement.base_gpa, placement.size_bytes, cmdline_gpa))
    start_info = StartInfo(
        magic=START_MAGIC,
        version=VERSION_WITH_MEMORY_MAP,
        flags=0,
        nr_modules=len(modules),
        modlist_paddr=modlist_gpa if modules else 0,
        cmdline_paddr=handover.cmdline.base_gpa,
        rsdp_paddr=handover.rsdp_gpa,
        memmap_paddr=memmap_gpa,
        memmap_entries=len(memmap),
    )
    packed = [start_info.pack()]
    packed += [module.pack() for module in modules]
    packed += [entry.pack() for entry in memmap]
    page = b"".join([*packed, strings])
    if len(page) > layout.START_INFO_MAX_BYTES:
        raise KernelImageError(
            f"the start_info has {len(page)} bytes with {len(modules)} modules and "
            f"{len(memmap)} ranges of memory; expected at most {layout.START_INFO_MAX_BYTES}; "
            "give fewer modules, or shorter arguments to them",
            "pvh-start-info-size",
        )
    entry = registers.protected_mode(entry_gpa, rbx=layout.START_INFO_GPA)
    return BootPlan(
        [
            Blob("GDT", layout.GDT_GPA, entry.gdt),
            Blob("start_info", layout.START_INFO_GPA, page),
        ],
        entry,
    )
