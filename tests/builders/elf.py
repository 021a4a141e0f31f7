"""ELF files made to order. Layouts are those of System V gABI, chapters 4 and 5."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

PT_LOAD = 1
PT_INTERP = 3
PT_NOTE = 4
ET_EXEC = 2
EM_386 = 3
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
    """An ELF file, ELF64 or ELF32 by ``bits``. A value that is None is worked out."""

    segments: list[Segment] = field(default_factory=list)
    entry: int = 0
    bits: int = 64
    elf_class: int | None = None
    elf_data: int = 1
    kind: int = ET_EXEC
    machine: int | None = None
    phentsize: int | None = None
    phnum: int | None = None
    phoff: int | None = None

    def build(self) -> bytes:
        """The file: header, program headers, then the segments' bytes one after the other."""
        ehdr_size, phdr_size = (64, 56) if self.bits == 64 else (52, 32)
        position = ehdr_size + phdr_size * len(self.segments)
        headers, contents = b"", b""
        for segment in self.segments:
            addresses = (
                position if segment.offset is None else segment.offset,
                segment.paddr if segment.vaddr is None else segment.vaddr,
                segment.paddr,
                len(segment.data) if segment.filesz is None else segment.filesz,
                len(segment.data) if segment.memsz is None else segment.memsz,
            )
            if self.bits == 64:
                fields = (segment.kind, segment.flags, *addresses, segment.align)
                headers += struct.pack("<IIQQQQQQ", *fields)
            else:
                headers += struct.pack(
                    "<8I", segment.kind, *addresses, segment.flags, segment.align
                )
            contents += segment.data
            position += len(segment.data)
        elf_class = self.bits // 32 if self.elf_class is None else self.elf_class
        machine = self.machine
        if machine is None:
            machine = EM_X86_64 if self.bits == 64 else EM_386
        ident = b"\x7fELF" + bytes([elf_class, self.elf_data, 1]) + bytes(9)
        header = struct.pack(
            "<16sHHIQQQIHHHHHH" if self.bits == 64 else "<16sHHIIIIIHHHHHH",
            *(ident, self.kind, machine, 1, self.entry),
            ehdr_size if self.phoff is None else self.phoff,
            *(0, 0, ehdr_size),
            phdr_size if self.phentsize is None else self.phentsize,
            len(self.segments) if self.phnum is None else self.phnum,
            *(0, 0, 0),
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
