"""What a kernel is told: start_info, Multiboot's information or boot_params, and where they lead.

Specifications: xen/include/public/arch-x86/hvm/start_info.h; Multiboot Specification 0.6.96, 3.3;
Documentation/arch/x86/zero-page.rst and boot.rst (setup_data).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.boot import Protocol, boot_params, multiboot
from pyvmm.boot.memory_map import TYPE_NAMES
from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    address,
    decimal,
    one_of,
    read_fields,
    size,
    size_of,
    values_of,
)
from pyvmm.explain.model import Cell, Column, Field, Section, Table

if TYPE_CHECKING:
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.memory import GuestMemory


def describe(protocol: Protocol, entry: EntryState, memory: GuestMemory) -> Iterator[Section]:
    """The sections about what ``entry``'s registers point to, by ``protocol``."""
    if protocol is Protocol.PVH:
        yield from _describe_start_info(memory, entry.rbx)
    elif protocol is Protocol.MULTIBOOT:
        yield from _describe_multiboot(memory, entry.rbx)
    else:
        yield from _describe_boot_params(memory, entry.rsi)


_START_INFO = (
    FieldSpec("magic", 4, "XEN_HVM_START_MAGIC_VALUE"),
    FieldSpec("version", 4, "1: there is a memory map", decimal),
    FieldSpec("flags", 4, "Xen's own"),
    FieldSpec("nr_modules", 4, "how many modules there are; the first is the initrd", decimal),
    FieldSpec("modlist_paddr", 8, "where the list of modules is", address),
    FieldSpec("cmdline_paddr", 8, "where the command line is", address),
    FieldSpec("rsdp_paddr", 8, "where ACPI's tables begin", address),
    FieldSpec("memmap_paddr", 8, "where the memory map is", address),
    FieldSpec("memmap_entries", 4, "how many entries that has", decimal),
    FieldSpec("reserved", 4, "zero"),
)
_MODLIST_ENTRY = (
    FieldSpec("paddr", 8, "where it begins", address),
    FieldSpec("size", 8, "how long it is", size),
    FieldSpec("cmdline_paddr", 8, "where its command line is; 0: it has none", address),
    FieldSpec("reserved", 8, "zero"),
)
_MEMMAP_ENTRY = (
    FieldSpec("addr", 8, "where it begins", address),
    FieldSpec("size", 8, "how long it is", size),
    FieldSpec("type", 4, "what may be done with it", one_of(TYPE_NAMES)),
    FieldSpec("reserved", 4, "zero"),
)
_E820_ENTRY = _MEMMAP_ENTRY[:3]


def _describe_start_info(memory: GuestMemory, gpa: int) -> Iterator[Section]:
    source = "xen/include/public/arch-x86/hvm/start_info.h"
    fields = _read_structure(memory, gpa, _START_INFO)
    about = f"What PVH hands to the kernel, at {address(gpa)}."
    yield Section("start_info", "hvm_start_info", source, about, fields)
    values = values_of(fields)
    modules = _read_table(memory, values["modlist_paddr"], values["nr_modules"], _MODLIST_ENTRY)
    yield from _describe_modules(modules, source)
    memmap = _read_table(memory, values["memmap_paddr"], values["memmap_entries"], _MEMMAP_ENTRY)
    yield _describe_memory_map(memmap, source)


_MULTIBOOT_FLAGS = (
    BitSpec("INFO_MEMORY", multiboot.INFO_MEMORY, "mem_lower and mem_upper are valid"),
    BitSpec("INFO_CMDLINE", multiboot.INFO_CMDLINE, "cmdline is"),
    BitSpec("INFO_MODS", multiboot.INFO_MODS, "mods_count and mods_addr are"),
    BitSpec("INFO_MMAP", multiboot.INFO_MMAP, "mmap_length and mmap_addr are"),
    BitSpec("INFO_BOOT_LOADER_NAME", multiboot.INFO_BOOT_LOADER_NAME, "boot_loader_name is"),
)
_MULTIBOOT_INFO = (
    FieldSpec("flags", 4, "which of the fields are valid", hex, _MULTIBOOT_FLAGS),
    FieldSpec("mem_lower", 4, "KiB of memory from 0", decimal),
    FieldSpec("mem_upper", 4, "KiB of memory from 1 MiB", decimal),
    FieldSpec("boot_device", 4, "not valid: there is none"),
    FieldSpec("cmdline", 4, "where the command line is", address),
    FieldSpec("mods_count", 4, "how many modules there are; the first is the initrd", decimal),
    FieldSpec("mods_addr", 4, "where the list of modules is", address),
    *(FieldSpec(f"syms[{index}]", 4, "not valid: there are no symbols") for index in range(4)),
    FieldSpec("mmap_length", 4, "the memory map's size in bytes", decimal),
    FieldSpec("mmap_addr", 4, "where the memory map is", address),
    FieldSpec("drives_length", 4, "not valid: there are no drives"),
    FieldSpec("drives_addr", 4, "not valid"),
    FieldSpec("config_table", 4, "not valid: there is no BIOS"),
    FieldSpec("boot_loader_name", 4, "where our name is", address),
    FieldSpec("apm_table", 4, "not valid"),
)
_MULTIBOOT_MODULE = (
    FieldSpec("mod_start", 4, "where it begins", address),
    FieldSpec("mod_end", 4, "the address behind its last byte", address),
    FieldSpec("string", 4, "where its name and command line are", address),
    FieldSpec("reserved", 4, "zero"),
)
_MULTIBOOT_MMAP_ENTRY = (
    FieldSpec("entry_size", 4, "the bytes that follow this field", decimal),
    *_E820_ENTRY,
)


def _describe_multiboot(memory: GuestMemory, gpa: int) -> Iterator[Section]:
    source = "Multiboot Specification 0.6.96, 3.3"
    fields = _read_structure(memory, gpa, _MULTIBOOT_INFO)
    about = f"What Multiboot hands to the kernel, at {address(gpa)}."
    yield Section("multiboot_info", "Multiboot information", source, about, fields)
    values = values_of(fields)
    modules = _read_table(memory, values["mods_addr"], values["mods_count"], _MULTIBOOT_MODULE)
    yield from _describe_modules(modules, source)
    count = values["mmap_length"] // size_of(_MULTIBOOT_MMAP_ENTRY)
    memmap = _read_table(memory, values["mmap_addr"], count, _MULTIBOOT_MMAP_ENTRY)
    yield _describe_memory_map(memmap, source)


_BOOT_PARAMS = (
    ("acpi_rsdp_addr", boot_params.ACPI_RSDP_ADDR, "where ACPI's tables begin", address),
    ("ext_ramdisk_image", boot_params.EXT_RAMDISK_IMAGE, "ramdisk_image's upper half", hex),
    ("ext_ramdisk_size", boot_params.EXT_RAMDISK_SIZE, "ramdisk_size's upper half", hex),
    ("ext_cmd_line_ptr", boot_params.EXT_CMD_LINE_PTR, "cmd_line_ptr's upper half", hex),
    ("e820_entries", boot_params.E820_ENTRIES, "how many entries the memory map has", decimal),
    ("boot_flag", boot_params.BOOT_FLAG, "0xaa55", hex),
    ("header", boot_params.HEADER_MAGIC, "HdrS", hex),
    ("version", boot_params.VERSION, "the protocol's version", hex),
    ("type_of_loader", boot_params.TYPE_OF_LOADER, "0xff: a loader without a number", hex),
    ("loadflags", boot_params.LOADFLAGS, "LOADED_HIGH, and KASLR_FLAG if it was moved", hex),
    (
        "code32_start",
        boot_params.CODE32_START,
        "where the kernel is, if it decompresses itself",
        address,
    ),
    ("ramdisk_image", boot_params.RAMDISK_IMAGE, "where the initrd is", address),
    ("ramdisk_size", boot_params.RAMDISK_SIZE, "the initrd's size", size),
    ("cmd_line_ptr", boot_params.CMD_LINE_PTR, "where the command line is", address),
    ("kernel_alignment", boot_params.KERNEL_ALIGNMENT, "the alignment that it was given", size),
    ("setup_data", boot_params.SETUP_DATA, "a list: a seed for random numbers", address),
)


_SETUP_DATA = (
    FieldSpec("next", 8, "where the next node is; 0: this is the last", address),
    FieldSpec("type", 4, "what its data are; 9: a seed for random numbers", decimal),
    FieldSpec("len", 4, "how long they are", decimal),
)


def _describe_boot_params(memory: GuestMemory, gpa: int) -> Iterator[Section]:
    page = memory.view(gpa, boot_params.SIZE_BYTES)
    fields: list[Field] = []
    for name, (offset, size_bytes), meaning, show in _BOOT_PARAMS:
        fields += read_fields(page, offset, [FieldSpec(name, size_bytes, meaning, show)])
    yield Section(
        "boot_params",
        "boot_params, the zero page",
        "Documentation/arch/x86/zero-page.rst",
        f"What the Linux protocols hand to the kernel, at {address(gpa)}; the fields that the "
        "loader writes.",
        tuple(fields),
    )
    node_gpa = values_of(fields)["setup_data"]
    if node_gpa:
        yield Section(
            "setup_data",
            "setup_data",
            "Documentation/arch/x86/boot.rst, setup_data",
            "More parameters, in a list.",
            table=_read_table(memory, node_gpa, 1, _SETUP_DATA),
        )
    count = page[boot_params.E820_ENTRIES.offset]
    e820_table = _read_table(memory, gpa + boot_params.E820_TABLE.offset, count, _E820_ENTRY)
    yield _describe_memory_map(e820_table, "Documentation/arch/x86/zero-page.rst, e820_table")


def _describe_modules(table: Table, source: str) -> Iterator[Section]:
    if table.rows:
        yield Section("modules", "Modules", source, "The first is the initrd.", table=table)


def _describe_memory_map(table: Table, source: str) -> Section:
    return Section(
        "memory_map_entries",
        "The memory map that the kernel is given",
        source,
        "Low memory counts as usable: the kernel copies what it needs before it gives that away.",
        table=table,
    )


def _read_structure(
    memory: GuestMemory, gpa: int, specs: tuple[FieldSpec, ...]
) -> tuple[Field, ...]:
    return read_fields(memory.view(gpa, size_of(specs)), 0, specs)


def _read_table(memory: GuestMemory, gpa: int, count: int, specs: tuple[FieldSpec, ...]) -> Table:
    """``count`` structures in a row."""
    rows = []
    for index in range(count):
        fields = _read_structure(memory, gpa + index * size_of(specs), specs)
        rows.append(tuple(Cell(field.value, field.shown) for field in fields))
    return Table(tuple(Column(spec.name, spec.meaning) for spec in specs), tuple(rows))
