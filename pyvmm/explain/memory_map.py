"""Guest memory as a list of spans, lowest address first: what lies where, and what lies wrong.

The ground is what the machine has at each address: RAM, what the kernel's memory map reserves, the
devices in the 32-bit gap, nothing. What is placed covers it. A kernel that cannot be loaded is
drawn where it wants to be, and its spans say what is in the way.

The addresses are those of arch/x86_64/layout.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout
from pyvmm.boot.memory_map import RAM, memory_map
from pyvmm.explain.model import MemoryMap, Span, SpanKind
from pyvmm.units import PAGE_SIZE, KiB

if TYPE_CHECKING:
    from pyvmm.loader.load import Placement
    from pyvmm.memory import GuestMemory

_RESERVED = (
    ("EBDA: MP table", layout.EBDA_GPA, layout.EBDA_BYTES),
    ("video memory, ROMs", layout.LEGACY_HOLE_GPA, layout.ACPI_GPA - layout.LEGACY_HOLE_GPA),
    ("ACPI tables", layout.ACPI_GPA, layout.ACPI_MAX_BYTES),
)
_GAP = (
    ("IOAPIC", layout.IOAPIC_GPA, PAGE_SIZE),
    ("local APICs", layout.LAPIC_GPA, PAGE_SIZE),
    ("KVM's own pages", layout.IDENTITY_MAP_GPA, 16 * KiB),
)


def draw(memory: GuestMemory, placements: list[Placement]) -> MemoryMap:
    """The map of ``memory`` with ``placements`` in it, each of which may lie anywhere."""
    placements = sorted(
        (placement for placement in placements if placement.size_bytes),
        key=lambda placement: placement.base_gpa,
    )
    spans = list(_placed(memory, placements))
    for area in _ground(memory):
        spans += _uncovered(area, placements)
    spans.sort(key=lambda span: (span.base_gpa, span.end_gpa))
    return MemoryMap(memory.size_bytes, tuple(spans))


def _placed(memory: GuestMemory, placements: list[Placement]) -> Iterator[Span]:
    highest: Placement | None = None
    for placement in placements:
        problem = ""
        if not memory.contains(placement.base_gpa, placement.size_bytes):
            begins_in_ram = memory.contains(placement.base_gpa, 1)
            problem = "goes beyond RAM" if begins_in_ram else "not RAM"
        elif highest is not None and placement.base_gpa < highest.end_gpa:
            problem = f"overlaps {highest.name}"
        yield Span(SpanKind.PLACED, *placement, problem)
        if highest is None or placement.end_gpa > highest.end_gpa:
            highest = placement


def _ground(memory: GuestMemory) -> Iterator[Span]:
    """What is at each address without the kernel, from 0 to the end of RAM or of the gap."""
    for base_gpa, size_bytes, kind in memory_map(memory):
        if kind == RAM:
            yield Span(SpanKind.FREE, "free", base_gpa, size_bytes)
    for reserved in _RESERVED:
        yield Span(SpanKind.RESERVED, *reserved)
    gpa = memory.regions[0].end_gpa
    for device in _GAP:
        span = Span(SpanKind.DEVICE, *device)
        yield Span(SpanKind.HOLE, "nothing", gpa, span.base_gpa - gpa)
        yield span
        gpa = span.end_gpa
    yield Span(SpanKind.HOLE, "nothing", gpa, layout.GAP_END - gpa)


def _uncovered(area: Span, placements: list[Placement]) -> Iterator[Span]:
    """The parts of ``area`` that none of ``placements``, which are sorted, lies on."""
    gpa = area.base_gpa
    for placement in placements:
        if placement.end_gpa <= gpa:
            continue
        if placement.base_gpa >= area.end_gpa:
            break
        if placement.base_gpa > gpa:
            yield area._replace(base_gpa=gpa, size_bytes=placement.base_gpa - gpa)
        gpa = placement.end_gpa
    if gpa < area.end_gpa:
        yield area._replace(base_gpa=gpa, size_bytes=area.end_gpa - gpa)
