"""PE files made to order: the layout of Microsoft's PE Format. And what kernels make of it."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

FILE_ALIGNMENT = 0x200


@dataclass
class Section:
    """A section's header and contents. A value that is None is worked out."""

    name: bytes
    data: bytes = b""
    virtual_size: int | None = None
    raw_bytes: int | None = None
    offset: int | None = None


@dataclass
class Pe:
    """A PE32+ file for x86-64, an EFI application. A value that is None is worked out."""

    sections: list[Section] = field(default_factory=list)
    machine: int = 0x8664
    magic: int = 0x20B
    e_lfanew: int = 0x80
    signature: bytes = b"PE\x00\x00"
    optional_bytes: int = 0xF0
    section_count: int | None = None

    def build(self) -> bytes:
        """The file: headers, then the sections' contents, aligned to 512 bytes."""
        dos = b"MZ" + bytes(0x3A) + struct.pack("<I", self.e_lfanew)
        count = len(self.sections) if self.section_count is None else self.section_count
        coff = struct.pack("<HHIIIHH", self.machine, count, 0, 0, 0, self.optional_bytes, 0x22E)
        # Magic, then by offset: 16 AddressOfEntryPoint, 32 SectionAlignment, 36 FileAlignment,
        # 56 SizeOfImage, 60 SizeOfHeaders, 68 Subsystem.
        optional = bytearray(0xF0)
        struct.pack_into("<H", optional, 0, self.magic)
        struct.pack_into("<I", optional, 16, 0x1234)
        struct.pack_into("<II", optional, 32, 0x1000, FILE_ALIGNMENT)
        struct.pack_into("<II", optional, 56, 0x9000, 0x400)
        struct.pack_into("<H", optional, 68, 10)
        headers = dos.ljust(self.e_lfanew, b"\x00") + self.signature + coff
        headers += bytes(optional)[: self.optional_bytes]
        position = _align(len(headers) + 40 * len(self.sections))
        contents = b""
        for section in self.sections:
            raw_bytes = _align(len(section.data))
            headers += struct.pack(
                "<8sIIIIIIHHI",
                section.name,
                len(section.data) if section.virtual_size is None else section.virtual_size,
                0x1000 + position,
                raw_bytes if section.raw_bytes is None else section.raw_bytes,
                position if section.offset is None else section.offset,
                *(0, 0, 0, 0, 0x4000_0040),
            )
            contents += section.data.ljust(raw_bytes, b"\xcc")
            position += raw_bytes
        return headers.ljust(_align(len(headers)), b"\x00") + contents


def uki(linux: bytes, **sections: bytes) -> bytes:
    """A unified kernel image of ``linux`` and ``sections``, named without their dot."""
    others = [Section(b"." + name.encode(), data) for name, data in sections.items()]
    return Pe([Section(b".text", b"stub"), *others, Section(b".linux", linux)]).build()


def _align(value: int) -> int:
    return -(-value // FILE_ALIGNMENT) * FILE_ALIGNMENT
