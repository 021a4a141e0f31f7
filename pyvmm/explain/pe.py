"""PE: the headers of an EFI program, which a kernel with an EFI stub is as well.

    0x00       "MZ"; at 0x3c e_lfanew says where the rest is
    e_lfanew   "PE", then the COFF file header and the optional header
    ...        the section table

Specification: Microsoft, PE Format; the names are those of its tables.
"""

from __future__ import annotations

from collections.abc import Iterator

from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    decimal,
    magic,
    one_of,
    read_fields,
    size,
    size_of,
    text,
    values_of,
)
from pyvmm.explain.model import Cell, Column, Section, Table

_MZ = b"MZ"
_E_LFANEW = 0x3C
_PE32, _PE32_PLUS = 0x10B, 0x20B
_MAX_SECTIONS = 96  # PE Format, NumberOfSections: what the Windows loader takes

_MACHINES = {
    0x014C: "I386",
    0x01C4: "ARMNT",
    0x5032: "RISCV32",
    0x5064: "RISCV64",
    0x6264: "LOONGARCH64",
    0x8664: "AMD64",
    0xAA64: "ARM64",
}
_SUBSYSTEMS = {
    10: "EFI_APPLICATION",
    11: "EFI_BOOT_SERVICE_DRIVER",
    12: "EFI_RUNTIME_DRIVER",
}
_CHARACTERISTICS = (
    BitSpec("RELOCS_STRIPPED", 0x0001, "must be loaded at ImageBase"),
    BitSpec("EXECUTABLE_IMAGE", 0x0002, "can be run"),
    BitSpec("LINE_NUMS_STRIPPED", 0x0004, "deprecated"),
    BitSpec("LOCAL_SYMS_STRIPPED", 0x0008, "deprecated"),
    BitSpec("LARGE_ADDRESS_AWARE", 0x0020, "can use addresses above 2 GiB"),
    BitSpec("32BIT_MACHINE", 0x0100, "for 32-bit words"),
    BitSpec("DEBUG_STRIPPED", 0x0200, "without debugging information"),
)
_DLL_CHARACTERISTICS = (
    BitSpec("DYNAMIC_BASE", 0x0040, "may be loaded elsewhere"),
    BitSpec("NX_COMPAT", 0x0100, "never executes what it may write"),
)


def _machine(value: int) -> str:
    return f"{value:#x} ({_MACHINES[value]})" if value in _MACHINES else hex(value)


_DOS_HEADER = (
    FieldSpec("e_magic", 2, "the magic number: MZ", magic(2)),
    # What is between concerns MS-DOS, or the kernel whose header it is, too.
)
_E_LFANEW_FIELD = FieldSpec("e_lfanew", 4, "where the PE signature is")
_FILE_HEADER = (
    FieldSpec("Signature", 4, "the magic number: PE", magic(4)),
    FieldSpec("Machine", 2, "the processor that it is for", _machine),
    FieldSpec("NumberOfSections", 2, "how many sections there are", decimal),
    FieldSpec("TimeDateStamp", 4, "when it was linked; 0 if that is not told"),
    FieldSpec("PointerToSymbolTable", 4, "deprecated"),
    FieldSpec("NumberOfSymbols", 4, "deprecated", decimal),
    FieldSpec("SizeOfOptionalHeader", 2, "the size of what follows", decimal),
    FieldSpec("Characteristics", 2, "what kind of program it is", hex, _CHARACTERISTICS),
)


def _optional_header(is_plus: bool) -> tuple[FieldSpec, ...]:
    """The optional header up to its data directories: PE32+'s, or PE32's."""
    word = 8 if is_plus else 4
    return (
        FieldSpec("Magic", 2, "0x20b is PE32+, 64-bit; 0x10b PE32"),
        FieldSpec("MajorLinkerVersion", 1, "the linker's version", decimal),
        FieldSpec("MinorLinkerVersion", 1, "more of it", decimal),
        FieldSpec("SizeOfCode", 4, "the size of all code", size),
        FieldSpec("SizeOfInitializedData", 4, "the size of all data", size),
        FieldSpec("SizeOfUninitializedData", 4, "the size of all zeros", size),
        FieldSpec("AddressOfEntryPoint", 4, "where firmware enters it, from its start"),
        FieldSpec("BaseOfCode", 4, "where the code begins"),
        *([] if is_plus else [FieldSpec("BaseOfData", 4, "where the data begin")]),
        FieldSpec("ImageBase", word, "where it would best be loaded"),
        FieldSpec("SectionAlignment", 4, "of sections in memory", size),
        FieldSpec("FileAlignment", 4, "of sections in the file", size),
        FieldSpec("MajorOperatingSystemVersion", 2, "not used by EFI", decimal),
        FieldSpec("MinorOperatingSystemVersion", 2, "not used by EFI", decimal),
        FieldSpec("MajorImageVersion", 2, "Linux: the version of its EFI stub", decimal),
        FieldSpec("MinorImageVersion", 2, "more of it", decimal),
        FieldSpec("MajorSubsystemVersion", 2, "not used by EFI", decimal),
        FieldSpec("MinorSubsystemVersion", 2, "not used by EFI", decimal),
        FieldSpec("Win32VersionValue", 4, "zero"),
        FieldSpec("SizeOfImage", 4, "the memory it takes, as firmware loads it", size),
        FieldSpec("SizeOfHeaders", 4, "the size of all headers", size),
        FieldSpec("CheckSum", 4, "of the file; EFI does not ask for it"),
        FieldSpec("Subsystem", 2, "what runs it", one_of(_SUBSYSTEMS)),
        FieldSpec("DllCharacteristics", 2, "how it may be loaded", hex, _DLL_CHARACTERISTICS),
        FieldSpec("SizeOfStackReserve", word, "not used by EFI"),
        FieldSpec("SizeOfStackCommit", word, "not used by EFI"),
        FieldSpec("SizeOfHeapReserve", word, "not used by EFI"),
        FieldSpec("SizeOfHeapCommit", word, "not used by EFI"),
        FieldSpec("LoaderFlags", 4, "zero"),
        FieldSpec("NumberOfRvaAndSizes", 4, "how many data directories follow", decimal),
    )


_SECTION_HEADER = (
    FieldSpec("Name", 8, "what is in it", text(8)),
    FieldSpec("VirtualSize", 4, "its size in memory", size),
    FieldSpec("VirtualAddress", 4, "where it is in memory, from the program's start"),
    FieldSpec("SizeOfRawData", 4, "its size in the file", size),
    FieldSpec("PointerToRawData", 4, "where it is in the file"),
    FieldSpec("PointerToRelocations", 4, "zero"),
    FieldSpec("PointerToLinenumbers", 4, "deprecated"),
    FieldSpec("NumberOfRelocations", 2, "zero", decimal),
    FieldSpec("NumberOfLinenumbers", 2, "deprecated", decimal),
    FieldSpec(
        "Characteristics", 4, "0x20 code, 0x40 data, 0x2000_0000 x, 0x4000_0000 r, 0x8000_0000 w"
    ),
)
_SHOWN_COLUMNS = (
    "Name",
    "VirtualAddress",
    "VirtualSize",
    "PointerToRawData",
    "SizeOfRawData",
    "Characteristics",
)


def describe(data: memoryview, *, key: str = "pe", what: str = "PE") -> Iterator[Section]:
    """The sections about the PE headers of ``data``; none if it does not begin with "MZ"."""
    if data[: len(_MZ)] != _MZ:
        return
    dos = read_fields(data, 0, _DOS_HEADER) + read_fields(data, _E_LFANEW, (_E_LFANEW_FIELD,))
    pe = values_of(dos).get("e_lfanew", len(data))
    file_header = read_fields(data, pe, _FILE_HEADER)
    values = values_of(file_header)
    if values.get("Signature") != int.from_bytes(b"PE\0\0", "little"):
        return  # as of old kernels without an EFI stub: their first bytes are code
    start = pe + size_of(_FILE_HEADER)
    optional_bytes = values.get("SizeOfOptionalHeader", 0)
    is_plus = int.from_bytes(data[start : start + 2], "little") == _PE32_PLUS
    optional = read_fields(data[: start + optional_bytes], start, _optional_header(is_plus))
    yield Section(
        f"{key}_header",
        f"{what} header",
        "Microsoft, PE Format, COFF File Header, Optional Header",
        "By this EFI firmware starts it as a program. pyvmm has no firmware, and does not need it.",
        dos + file_header + optional,
    )
    table = _section_table(data, start + optional_bytes, values.get("NumberOfSections", 0))
    if table.rows:
        source = "Microsoft, PE Format, Section Table"
        yield Section(f"{key}_sections", f"{what} sections", source, table=table)


def _section_table(data: memoryview, offset: int, count: int) -> Table:
    rows = []
    for index in range(min(count, _MAX_SECTIONS)):
        start = offset + index * size_of(_SECTION_HEADER)
        fields = {field.name: field for field in read_fields(data, start, _SECTION_HEADER)}
        if any(field.value is None for field in fields.values()):
            break
        row = [Cell(fields[name].value, fields[name].shown) for name in _SHOWN_COLUMNS]
        row[0] = Cell(row[0].shown, row[0].shown)
        rows.append(tuple(row))
    meanings = {spec.name: spec.meaning for spec in _SECTION_HEADER}
    return Table(tuple(Column(name, meanings[name]) for name in _SHOWN_COLUMNS), tuple(rows))
