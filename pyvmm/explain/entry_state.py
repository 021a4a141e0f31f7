"""The boot processor at its first instruction: registers, and the tables that they point to.

Specification: SDM 3A 2.5 (control registers), 3.4.5 (GDT), 4.5 (page tables).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    address,
    cell,
    human_size,
    make_field,
    text_cell,
)
from pyvmm.explain.model import Column, Field, Section, Table
from pyvmm.units import PAGE_SIZE

if TYPE_CHECKING:
    from pyvmm.arch.x86_64.gdt import Segment
    from pyvmm.arch.x86_64.registers import EntryState
    from pyvmm.boot.handover import BootPlan
    from pyvmm.memory import GuestMemory


def describe(plan: BootPlan, memory: GuestMemory, source: str) -> Iterator[Section]:
    """The sections about the state that ``plan`` has, which ``source`` specifies."""
    yield _describe_registers(plan, source)
    yield _describe_gdt(plan.entry, memory)
    if plan.entry.cr3:
        yield _describe_page_tables(memory, plan.entry.cr3)


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
_DATA_SEGMENTS = ("ds", "es", "fs", "gs", "ss")


def _describe_registers(plan: BootPlan, source: str) -> Section:
    entry = plan.entry
    names = {blob.gpa: blob.name for blob in plan.blobs}
    fields = []
    for spec in _REGISTERS:
        value = getattr(entry, spec.name)
        field = make_field(spec, value)
        if not value:
            field = field._replace(meaning="not used by this protocol")
        elif spec.meaning == _POINTER:
            field = field._replace(meaning=_POINTER + names.get(value, "nothing known"))
        fields.append(field)
    segments = {"cs": entry.code, **dict.fromkeys(_DATA_SEGMENTS, entry.data), "tr": entry.task}
    for name, segment in segments.items():
        fields.append(Field(name, segment.selector, hex(segment.selector), _segment(segment)))
    gdtr = f"{address(entry.gdt_gpa)}, {len(entry.gdt)} bytes"
    fields.append(Field("gdtr", entry.gdt_gpa, gdtr, "the GDT, below"))
    return Section(
        "entry_state",
        "The boot processor at entry",
        source,
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
        rows.append(
            (cell(index * 8), cell(descriptor, lambda value: f"{value:016x}"), text_cell(text))
        )
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
