"""What pyvmm made of an image: what it loaded where, and how the guest is entered.

All of it is read back: from the registers at entry, and from guest memory, where they point to.
So it is what the kernel will find, not what was meant to be there.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.boot import Protocol, entries_of, why_not
from pyvmm.explain import entry_state, handover
from pyvmm.explain.fields import address, cell, human_size, text_cell
from pyvmm.explain.model import Cell, Column, Field, Section, Table
from pyvmm.loader.load import Placement

if TYPE_CHECKING:
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
    yield _describe_protocols(prepared, requested)
    if prepared.kernel.move is not None:
        yield _describe_move(prepared.kernel.move)
    yield _describe_placements(prepared)
    yield from entry_state.describe(prepared.plan, memory, _SOURCES[prepared.protocol])
    yield from handover.describe(prepared.protocol, prepared.plan.entry, memory)


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
    meanings = {
        "physical_base": "where its first byte lies",
        "virtual_base": "where it maps that",
        "virtual_offset": "what was added to its addresses: the Kernel Offset of a panic",
    }
    fields = tuple(
        Field(name, value, address(value), meanings[name]) for name, value in move._asdict().items()
    )
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
        "Before the first instruction. (ACPI's tables, the MP table and the BIOS data area follow "
        "when the machine has its processors.)",
        table=Table(columns, tuple(rows)),
    )
