"""The notes by which a kernel says that it can be entered by PVH, and whether it may be moved.

A PT_NOTE segment is a row of notes, each padded to 4 bytes whatever p_align says: the gABI's 8 for
ELF64 is followed by .note.gnu.property alone, whose parts are multiples of 8 anyway.

    Elf64_Nhdr   namesz, descsz, type: 4 bytes each (the same in ELF32)
    name         namesz bytes, the NUL included: "Xen"
    desc         descsz bytes

    XEN_ELFNOTE_PHYS32_ENTRY   18   where to enter: a physical address of 4 bytes, or 8
    XEN_ELFNOTE_PHYS32_RELOC   19   that the kernel may be moved (Linux 6.13): its alignment, its
                                    lowest first and its highest last address, 4 bytes each, of
                                    which the later ones may be missing

A kernel that is loaded elsewhere than where it was linked to is entered by PVH only if it has the
second note: the entry's code before Linux 6.13 counts on its own physical address.

Specification: System V gABI, chapter 5, "Note Section"; Xen, docs/misc/pvh.pandoc and
xen/include/public/elfnote.h.
"""

from __future__ import annotations

import struct
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.units import PAGE_SIZE, KiB, MiB, align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

NOTE_NAME = b"Xen\x00"
XEN_ELFNOTE_PHYS32_ENTRY = 18
XEN_ELFNOTE_PHYS32_RELOC = 19

# Linux's vmlinux has 512 bytes of notes.
MAX_NOTES_BYTES = 64 * KiB

_NHDR = struct.Struct("<III")
_HIGHEST_32_BIT = 0xFFFF_FFFF
_DEFAULT_ALIGNMENT = 2 * MiB  # elfnote.h, if neither the note nor p_align says it


class PvhState(Enum):
    """What the notes say of PVH."""

    PRESENT = "present"
    ABSENT = "absent"
    MALFORMED = "malformed"
    """There is, or seems to be, a note; it cannot be used."""
    IGNORED = "ignored"
    """The kernel was moved, and its notes do not allow that."""


class PhysicalRelocation(NamedTuple):
    """XEN_ELFNOTE_PHYS32_RELOC: where a moved kernel may lie. The defaults are elfnote.h's."""

    alignment: int
    lowest_gpa: int = 0
    highest_gpa: int = _HIGHEST_32_BIT
    """For its last byte."""


class PvhEntry(NamedTuple):
    """What the notes come to."""

    state: PvhState
    entry_gpa: int | None = None
    """Where to enter, if ``state`` is PRESENT."""
    problem: str | None = None
    """What is wrong, if it is MALFORMED or IGNORED."""
    relocation: PhysicalRelocation | None = None

    def moved(self, relocate_by: int, start_gpa: int, end_gpa: int) -> PvhEntry:
        """The same of the kernel ``relocate_by`` bytes above where it was linked to.

        It now lies at ``start_gpa`` to ``end_gpa`` (exclusive).
        """
        if relocate_by == 0 or self.entry_gpa is None:
            return self
        if self.relocation is None:
            return self._ignored("the kernel was moved, and it has no PHYS32_RELOC note")
        alignment, lowest_gpa, highest_gpa = self.relocation
        if start_gpa % alignment:
            return self._ignored(f"its PHYS32_RELOC note demands an alignment of {alignment:#x}")
        if start_gpa < lowest_gpa or end_gpa - 1 > highest_gpa:
            return self._ignored(
                f"its PHYS32_RELOC note demands a place in {lowest_gpa:#x}..{highest_gpa:#x}"
            )
        return self._replace(entry_gpa=self.entry_gpa + relocate_by)

    def _ignored(self, problem: str) -> PvhEntry:
        return self._replace(state=PvhState.IGNORED, entry_gpa=None, problem=problem)


class Note(NamedTuple):
    """One note. ``name`` has its NUL."""

    name: bytes
    type: int
    desc: memoryview
    offset: int
    """Where it begins in the file."""


ABSENT = PvhEntry(PvhState.ABSENT)


def read_notes(data: memoryview, offset: int, size_bytes: int) -> Iterator[Note]:
    """The notes in ``size_bytes`` of ``data`` from ``offset``, a PT_NOTE segment's p_filesz.

    Raises ValueError, saying why, where they cannot be read any further.
    """
    if offset + size_bytes > len(data):
        raise ValueError("the notes reach beyond the end of the file")
    if size_bytes > MAX_NOTES_BYTES:
        raise ValueError(f"the notes have {size_bytes} bytes; expected at most 64 KiB")
    notes = data[offset : offset + size_bytes]
    position = 0
    while position + _NHDR.size <= len(notes):
        namesz, descsz, note_type = _NHDR.unpack_from(notes, position)
        name = position + _NHDR.size
        desc = name + align_up(namesz, 4)
        if desc + descsz > len(notes):
            raise ValueError(
                f"the note at {position:#x} of the notes (namesz {namesz}, descsz {descsz}) "
                f"reaches beyond their end, {len(notes):#x}"
            )
        yield Note(
            bytes(notes[name : name + namesz]),
            note_type,
            notes[desc : desc + descsz],
            offset + position,
        )
        position = desc + align_up(descsz, 4)


def find_pvh_entry(
    data: memoryview,
    segments: list[tuple[int, int]],
    holds: Callable[[int], bool],
    largest_p_align: int,
) -> PvhEntry:
    """What the PT_NOTE ``segments`` of ``data`` say: pairs of p_offset and p_filesz.

    ``holds`` says whether an address is in one of the kernel's loadable segments, of whose
    alignments ``largest_p_align`` is one. The first note that can be used counts.
    """
    found = ABSENT
    relocation: PhysicalRelocation | None = None
    for offset, size_bytes in segments:
        try:
            for note in read_notes(data, offset, size_bytes):
                if note.name != NOTE_NAME:
                    continue
                if note.type == XEN_ELFNOTE_PHYS32_ENTRY and found.entry_gpa is None:
                    found = _entry(note.desc, holds)
                elif note.type == XEN_ELFNOTE_PHYS32_RELOC:
                    relocation = _relocation(note.desc, largest_p_align)
        except ValueError as error:
            if found.entry_gpa is None:
                found = PvhEntry(PvhState.MALFORMED, problem=str(error))
    return found._replace(relocation=relocation) if found.entry_gpa is not None else found


def _entry(desc: memoryview, holds: Callable[[int], bool]) -> PvhEntry:
    if len(desc) not in (4, 8):
        raise ValueError(f"it has {len(desc)} bytes; expected 4 or 8")
    entry_gpa = int.from_bytes(desc, "little")
    if not holds(entry_gpa):
        raise ValueError(f"its entry {entry_gpa:#x} is in none of the segments")
    if entry_gpa > _HIGHEST_32_BIT:
        raise ValueError(f"its entry {entry_gpa:#x} is not a 32-bit address")
    return PvhEntry(PvhState.PRESENT, entry_gpa)


def _relocation(desc: memoryview, largest_p_align: int) -> PhysicalRelocation | None:
    """What the note says; None if it is of no use, which is as if it were not there."""
    given = [
        int.from_bytes(desc[start : start + 4], "little")
        for start in range(0, min(len(desc), 12) & ~3, 4)
    ]
    default = largest_p_align if largest_p_align >= PAGE_SIZE else _DEFAULT_ALIGNMENT
    alignment, *limits = given or [default]
    if alignment == 0 or alignment & (alignment - 1):
        return None
    return PhysicalRelocation(alignment, *limits)
