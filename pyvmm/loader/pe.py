"""PE: the headers and sections of an EFI program, which is what many kernels are as well.

    0x00        "MZ", the MS-DOS header; its last field, e_lfanew at 0x3c, says where
    e_lfanew    "PE\\0\\0"
      + 4       COFF file header, 20 bytes: machine, how many sections
      + 24      optional header, SizeOfOptionalHeader bytes: entry, subsystem, sizes
      + ...     section table, 40 bytes each: a name, where it is in memory and in the file
    anywhere    the sections' contents

The arm64 and riscv64 Images, EFI zboot and unified kernel images (uki.py) have these headers. Who
boots them without firmware has no use for the program, only for what lies around it.

Left out: data directories, symbols, the string table (for names of more than 8 characters).

Specification: Microsoft, PE Format; the names are those of its tables.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from pyvmm.errors import KernelImageError

MZ_MAGIC = b"MZ"
PE_MAGIC = b"PE\x00\x00"
E_LFANEW_OFFSET = 0x3C
DOS_HEADER_BYTES = 0x40
PE32_MAGIC, PE32_PLUS_MAGIC = 0x10B, 0x20B
IMAGE_SUBSYSTEM_EFI_APPLICATION = 10

# PE Format, "Machine Types".
MACHINES = {
    0x014C: "i386",
    0x01C4: "ARM",
    0x5064: "RISC-V 64",
    0x6264: "LoongArch64",
    0x8664: "x86-64",
    0xAA64: "ARM64",
}

_FILE_HEADER = struct.Struct("<HHIIIHH")
_SECTION_HEADER = struct.Struct("<8sIIIIIIHHI")
# Up to Subsystem. Between ImageBase, and in PE32 BaseOfData, and these the two kinds are alike.
_OPTIONAL_HEADER = struct.Struct("<H14xI12xII16xII4xH")


class SectionHeader(NamedTuple):
    """A row of the section table, as far as it is used. Its name is text, without the padding."""

    name: str
    virtual_size: int
    virtual_address: int
    size_of_raw_data: int
    pointer_to_raw_data: int
    characteristics: int

    @property
    def size_bytes(self) -> int:
        """How much of it the file has: the linker pads raw data, and leaves out zeros at its end.

        Some tools do not say how long it is in memory.
        """
        return min(self.virtual_size or self.size_of_raw_data, self.size_of_raw_data)


class PeHeaders(NamedTuple):
    """The headers of a PE file, as far as they are used."""

    machine: int
    magic: int
    address_of_entry_point: int
    section_alignment: int
    file_alignment: int
    size_of_image: int
    size_of_headers: int
    subsystem: int
    sections: tuple[SectionHeader, ...]

    @property
    def machine_name(self) -> str:
        """The machine as people call it."""
        return MACHINES.get(self.machine, f"machine {self.machine:#06x}")


def parse(data: memoryview) -> PeHeaders:
    """The headers of ``data``, which begins with "MZ". Where sections are is not checked.

    Raises KernelImageError if they are not those of a PE file, or not all there.
    """
    if len(data) < DOS_HEADER_BYTES:
        raise KernelImageError(
            f"begins as an EFI program (MZ) and has only {len(data)} bytes; the first header alone "
            f"has {DOS_HEADER_BYTES}; get a complete copy",
            "pe-dos-header",
        )
    e_lfanew = int.from_bytes(data[E_LFANEW_OFFSET : E_LFANEW_OFFSET + 4], "little")
    if data[e_lfanew : e_lfanew + len(PE_MAGIC)] != PE_MAGIC:
        raise KernelImageError(
            f"is a DOS program (MZ, without a PE header at {e_lfanew:#x}, where 0x3c says it is); "
            "expected an x86-64 kernel: a bzImage or an ELF vmlinux",
            "pe-signature",
        )
    file_header = e_lfanew + len(PE_MAGIC)
    optional_header = file_header + _FILE_HEADER.size
    if optional_header > len(data):
        raise KernelImageError(
            _cut_off(data, "COFF file header", optional_header), "pe-file-header"
        )
    machine, section_count, _, _, _, optional_bytes, _ = _FILE_HEADER.unpack_from(data, file_header)
    if optional_bytes < _OPTIONAL_HEADER.size:
        raise KernelImageError(
            f"has {optional_bytes} as SizeOfOptionalHeader in its PE header; expected at least "
            f"{_OPTIONAL_HEADER.size}, as an EFI program has; get a fresh copy",
            "pe-optional-header-size",
        )
    section_table = optional_header + optional_bytes
    if section_table > len(data):
        raise KernelImageError(
            _cut_off(data, "optional header", section_table), "pe-optional-header"
        )
    magic, *fields = _OPTIONAL_HEADER.unpack_from(data, optional_header)
    if magic not in (PE32_MAGIC, PE32_PLUS_MAGIC):
        raise KernelImageError(
            f"has the magic number {magic:#x} in its PE optional header; expected "
            f"{PE32_PLUS_MAGIC:#x} (PE32+) or {PE32_MAGIC:#x} (PE32); get a fresh copy",
            "pe-optional-header-magic",
        )
    end = section_table + section_count * _SECTION_HEADER.size
    if end > len(data):
        raise KernelImageError(_cut_off(data, "section table", end), "pe-section-table")
    rows = _SECTION_HEADER.iter_unpack(data[section_table:end])
    sections = tuple(_section_header(*row) for row in rows)
    return PeHeaders._make((machine, magic, *fields, sections))


def contents(data: memoryview, section: SectionHeader) -> memoryview:
    """What ``section`` of ``data`` holds, without padding.

    Raises KernelImageError if it is not all there.
    """
    start = section.pointer_to_raw_data
    end = start + section.size_bytes
    if end > len(data):
        raise KernelImageError(
            f"has its section {section.name} at {start:#x}..{end:#x} of the file, which has only "
            f"{len(data):#x} bytes; get a complete copy",
            "pe-section",
        )
    return data[start:end]


def _section_header(
    name: bytes,
    virtual_size: int,
    virtual_address: int,
    size_of_raw_data: int,
    pointer_to_raw_data: int,
    *rest: int,
) -> SectionHeader:
    text = name.rstrip(b"\x00").decode("ascii", "backslashreplace")
    return SectionHeader(
        text, virtual_size, virtual_address, size_of_raw_data, pointer_to_raw_data, rest[-1]
    )


def _cut_off(data: memoryview, what: str, end: int) -> str:
    return (
        f"is an EFI program cut off after {len(data)} bytes; its {what} ends at {end}; "
        "get a complete copy"
    )
