"""What pyvmm made of an image: what it loaded where, how the guest is entered, and in which state.

All of it is read back: from the registers at entry, and from guest memory, where they point to.
So it is what the kernel will find, not what was meant to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.boot import Protocol, boot_params, entries_of, multiboot, why_not
from pyvmm.boot.memory_map import TYPE_NAMES
from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    address,
    cell,
    decimal,
    human_size,
    make_field,
    one_of,
    read_fields,
    size,
    size_of,
    text_cell,
    values_of,
)
from pyvmm.explain.model import Cell, Column, Field, Section, Table
from pyvmm.loader.load import Placement
from pyvmm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.arch.x86_64.gdt import Segment
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.loader.kaslr import Move
    from pyvmm.memory import GuestMemory
    from pyvmm.prepare import Prepared

_SOURCES = {
    Protocol.PVH: "xen/docs/misc/pvh.pandoc",
    Protocol.MULTIBOOT: "Multiboot Specification 0.6.96, 3.2",
    Protocol.LINUX64: "Documentation/arch/x86/boot.rst, 64-bit Boot Protocol",
    Protocol.LINUX32: "Documentation/arch/x86/boot.rst, 32-bit Boot Protocol",
}


def describe(prepared: Prepared, memory: GuestMemory, requested: Protocol) -> Iterator[Section]:
    """The sections about the boot that ``prepared`` is ready for, in ``memory``."""
    entry = prepared.plan.entry
    yield _describe_protocols(prepared, requested)
    if prepared.kernel.move is not None:
        yield _describe_move(prepared.kernel.move)
    yield _describe_placements(prepared)
    yield _describe_registers(prepared)
    yield _describe_gdt(entry, memory)
    if entry.cr3:
        yield _describe_page_tables(memory, entry.cr3)
    if prepared.protocol is Protocol.PVH:
        yield from _describe_start_info(memory, entry.rbx)
    elif prepared.protocol is Protocol.MULTIBOOT:
        yield from _describe_multiboot(memory, entry.rbx)
    else:
        yield from _describe_boot_params(memory, entry.rsi)


def placements(prepared: Prepared) -> list[Placement]:
    """All that lies in guest memory, and the room that the kernel will want behind it."""
    kernel = prepared.kernel
    end_gpa = max(placement.end_gpa for placement in kernel.placements)
    found = list(prepared.placements)
    if kernel.end_gpa > end_gpa:
        room = Placement("room to decompress itself", end_gpa, kernel.end_gpa - end_gpa)
        found.append(room)
    return found


def _describe_protocols(prepared: Prepared, requested: Protocol) -> Section:
    rows = []
    for protocol, entry_gpa in entries_of(prepared.kernel).items():
        if entry_gpa is None:
            entry, verdict = Cell(None, "-"), why_not(protocol, prepared.kernel)
        elif protocol is not prepared.protocol:
            entry, verdict = cell(entry_gpa, address), "possible"
        elif requested is Protocol.AUTO:
            entry, verdict = cell(entry_gpa, address), "taken: the first that it has"
        else:
            entry, verdict = cell(entry_gpa, address), "taken: asked for by --protocol"
        rows.append((text_cell(protocol.value), entry, text_cell(verdict)))
    columns = (
        Column("protocol", "the boot protocol"),
        Column("entry", "the guest physical address at which it enters the kernel"),
        Column("verdict", "whether it is taken, possible, or why it is neither"),
    )
    return Section(
        "protocols",
        "Ways to enter it",
        "",
        "pyvmm takes the first that the kernel has an entry for, unless --protocol says which.",
        table=Table(columns, tuple(rows)),
    )


def _describe_move(move: Move) -> Section:
    fields = (
        Field(
            "physical_base", move.physical_base, address(move.physical_base),
            "where its first byte lies",
        ),
        Field(
            "virtual_base", move.virtual_base, address(move.virtual_base),
            "where it maps that",
        ),
        Field(
            "virtual_offset", move.virtual_offset, address(move.virtual_offset),
            "what was added to its addresses: the Kernel Offset of a panic",
        ),
    )  # fmt: skip
    return Section(
        "kaslr",
        "Where it was moved",
        "arch/x86/boot/compressed/kaslr.c",
        "Its relocations have been applied. Another run chooses other addresses, unless they are "
        "given.",
        fields,
    )


def _describe_placements(prepared: Prepared) -> Section:
    rows = [
        (
            text_cell(placement.name),
            cell(placement.base_gpa, address),
            cell(placement.end_gpa, address),
            cell(placement.size_bytes, human_size),
        )
        for placement in sorted(placements(prepared), key=lambda placement: placement.base_gpa)
    ]
    columns = (
        Column("name", "what it is"),
        Column("base", "its guest physical address"),
        Column("end", "the address behind its last byte"),
        Column("size", "how long it is"),
    )
    return Section(
        "placements",
        "What is put into guest memory",
        "",
        "Before the first instruction. (ACPI's and the MP table follow when the machine has its "
        "processors.)",
        table=Table(columns, tuple(rows)),
    )


# The state at entry

_CR0 = (
    BitSpec("PE", 1 << 0, "protected mode"),
    BitSpec("ET", 1 << 4, "always set"),
    BitSpec("PG", 1 << 31, "paging"),
)
_CR4 = (BitSpec("PAE", 1 << 5, "64-bit page table entries, which long mode needs"),)
_EFER = (
    BitSpec("LME", 1 << 8, "long mode enabled"),
    BitSpec("LMA", 1 << 10, "long mode active"),
)
_RFLAGS = (
    BitSpec("reserved", 1 << 1, "always set"),
    BitSpec("IF", 1 << 9, "interrupts; off, as there is no IDT"),
)
_POINTER = "points to "
_REGISTERS = (
    FieldSpec("rip", 8, "the entry: the first instruction is here", address),
    FieldSpec("rsp", 8, "the stack", address),
    FieldSpec("rax", 8, "the loader's magic number"),
    FieldSpec("rbx", 8, _POINTER, address),
    FieldSpec("rsi", 8, _POINTER, address),
    FieldSpec("rflags", 8, "flags", hex, _RFLAGS),
    FieldSpec("cr0", 8, "the mode", hex, _CR0),
    FieldSpec("cr3", 8, "the page tables", address),
    FieldSpec("cr4", 8, "extensions", hex, _CR4),
    FieldSpec("efer", 8, "more of the mode", hex, _EFER),
)


def _describe_registers(prepared: Prepared) -> Section:
    entry = prepared.plan.entry
    names = {blob.gpa: blob.name for blob in prepared.plan.blobs}
    fields = []
    for spec in _REGISTERS:
        value = getattr(entry, spec.name)
        field = make_field(spec, value)
        if not value:
            field = field._replace(meaning="not used by this protocol")
        elif spec.meaning == _POINTER:
            field = field._replace(meaning=_POINTER + names.get(value, "nothing known"))
        fields.append(field)
    for name, segment in (("cs", entry.code), ("ds es fs gs ss", entry.data), ("tr", entry.task)):
        fields.append(Field(name, segment.selector, hex(segment.selector), _segment(segment)))
    gdtr = f"{address(entry.gdt_gpa)}, {len(entry.gdt)} bytes"
    fields.append(Field("gdtr", entry.gdt_gpa, gdtr, "the GDT, below"))
    return Section(
        "entry_state",
        "The boot processor at entry",
        _SOURCES[prepared.protocol],
        "All other registers are zero. Other processors wait for INIT and SIPI.",
        tuple(fields),
    )


def _segment(segment: Segment) -> str:
    if not segment.s:
        return f"a TSS that is never used, {segment.limit + 1} bytes at {segment.base:#x}"
    width = "64-bit" if segment.l else "32-bit" if segment.db else "16-bit"
    kind = f"{width} code" if segment.type & 8 else "data"
    return f"{kind}, base {segment.base:#x}, limit {segment.limit:#x}"


def _describe_gdt(entry: EntryState, memory: GuestMemory) -> Section:
    used = {segment.selector: segment for segment in (entry.code, entry.data, entry.task)}
    rows = []
    for index in range(len(entry.gdt) // 8):
        descriptor = memory.read_u64(entry.gdt_gpa + index * 8)
        segment = used.get(index * 8)
        text = _segment(segment) if segment else "null"
        rows.append((cell(index * 8), cell(descriptor, lambda value: f"{value:016x}"),
                     text_cell(text)))  # fmt: skip
    columns = (
        Column("selector", "what a segment register holds to name it"),
        Column("descriptor", "its 8 bytes, as a number"),
        Column("segment", "what that describes"),
    )
    return Section(
        "gdt",
        "GDT",
        "SDM 3A 3.4.5, Segment Descriptors",
        "The table that the segment registers were loaded from, and may be again.",
        table=Table(columns, tuple(rows)),
    )


def _describe_page_tables(memory: GuestMemory, pml4_gpa: int) -> Section:
    """The identity map: one entry of the PML4, directories behind each other, large pages."""
    pdpt_gpa = memory.read_u64(pml4_gpa) & _FRAME
    directories = [entry & _FRAME for entry in _table(memory, pdpt_gpa) if entry]
    leaves = [entry & _FRAME for directory in directories for entry in _table(memory, directory)]
    page_bytes = leaves[1] - leaves[0]
    mapped_bytes = leaves[-1] + page_bytes
    fields = (
        Field("PML4", pml4_gpa, address(pml4_gpa), "1 entry; CR3 points here"),
        Field("PDPT", pdpt_gpa, address(pdpt_gpa), f"{len(directories)} entries, one for each GiB"),
        Field("PD", directories[0], address(directories[0]), f"{len(directories)} directories"),
        Field("page", page_bytes, human_size(page_bytes), "present, writable"),
        Field("mapped", mapped_bytes, human_size(mapped_bytes), "from 0, each page to itself"),
    )
    return Section(
        "page_tables",
        "Page tables",
        "SDM 3A 4.5, 4-Level Paging",
        "A 64-bit entry is made with paging on: virtual addresses are the physical ones.",
        fields,
    )


_FRAME = ~0xFFF  # SDM 3A table 4-15 and following: the address in an entry


def _table(memory: GuestMemory, gpa: int) -> memoryview:
    return memory.view(gpa, PAGE_SIZE).cast("Q")


# What the kernel is told

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
    ("code32_start", boot_params.CODE32_START, "where the kernel was loaded", address),
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
