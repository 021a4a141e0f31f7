"""ELF64 files made to order. Layouts are those of System V gABI, chapters 4 and 5."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4
ET_EXEC = 2
EM_X86_64 = 62


@dataclass
class Segment:
    """A program header, and the bytes in the file for it."""

    paddr: int
    data: bytes = b""
    vaddr: int | None = None
    memsz: int | None = None
    filesz: int | None = None
    offset: int | None = None
    kind: int = PT_LOAD
    flags: int = 5
    align: int = 4


@dataclass
class Elf:
    """An ELF file. A value that is None is worked out."""

    segments: list[Segment] = field(default_factory=list)
    entry: int = 0
    elf_class: int = 2
    elf_data: int = 1
    kind: int = ET_EXEC
    machine: int = EM_X86_64
    phentsize: int = 56
    phnum: int | None = None
    phoff: int = 64

    def build(self) -> bytes:
        """The file: header, program headers, then the segments' bytes one after the other."""
        position = 64 + 56 * len(self.segments)
        headers, contents = b"", b""
        for segment in self.segments:
            headers += struct.pack(
                "<IIQQQQQQ",
                segment.kind,
                segment.flags,
                position if segment.offset is None else segment.offset,
                segment.paddr if segment.vaddr is None else segment.vaddr,
                segment.paddr,
                len(segment.data) if segment.filesz is None else segment.filesz,
                len(segment.data) if segment.memsz is None else segment.memsz,
                segment.align,
            )
            contents += segment.data
            position += len(segment.data)
        ident = b"\x7fELF" + bytes([self.elf_class, self.elf_data, 1]) + bytes(9)
        phnum = len(self.segments) if self.phnum is None else self.phnum
        header = struct.pack(
            "<16sHHIQQQIHHHHHH",
            *(ident, self.kind, self.machine, 1, self.entry, self.phoff, 0, 0),
            *(64, self.phentsize, phnum, 0, 0, 0),
        )
        return header + headers + contents


def note(name: bytes, kind: int, desc: bytes, *, namesz: int | None = None) -> bytes:
    """A note with 4-byte packing. ``name`` includes its NUL."""
    namesz = len(name) if namesz is None else namesz
    padded_name = name + bytes(-len(name) % 4)
    padded_desc = desc + bytes(-len(desc) % 4)
    return struct.pack("<III", namesz, len(desc), kind) + padded_name + padded_desc


def pvh_note(entry: int, *, size: int = 8) -> bytes:
    """XEN_ELFNOTE_PHYS32_ENTRY, 18 (Xen, public/elfnote.h)."""
    return note(b"Xen\x00", 18, entry.to_bytes(size, "little"))


def notes_segment(data: bytes, *, align: int = 4) -> Segment:
    """A PT_NOTE segment, which is in the file only."""
    return Segment(0, data, kind=PT_NOTE, align=align)


def vmlinux(code: bytes = b"\xf4" * 0x1000) -> bytes:
    """A small kernel: code at 2 MiB, data with a BSS behind it, and a PVH note."""
    return Elf(
        segments=[
            Segment(0x20_0000, code),
            Segment(0x40_0000, b"data" * 16, memsz=0x3000, flags=6),
            notes_segment(note(b"GNU\x00", 3, b"id" * 10) + pvh_note(0x20_0010)),
        ],
        entry=0x20_0100,
    ).build()
