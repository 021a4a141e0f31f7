"""ELF, of both classes: the header and the program headers, each field told; then the notes.

Of the sections only their place is told: loading needs none of them, and a stripped kernel has
none.

Specification: System V gABI, chapter 4 (header) and 5 (program headers); names are <elf.h>'s.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from pyvmm.explain.fields import (
    BitSpec,
    FieldSpec,
    address,
    decimal,
    magic,
    name_of,
    one_of,
    read_fields,
    size_of,
    values_of,
)
from pyvmm.explain.model import Cell, Column, Field, Section, Table
from pyvmm.explain.notes import MAX_NOTES
from pyvmm.explain.notes import describe as describe_notes
from pyvmm.loader.elf import (
    ELFCLASS32,
    ELFDATA2MSB,
    MAX_PROGRAM_HEADERS,
    PT_LOAD,
    PT_NOTE,
)
from pyvmm.loader.load import Placement
from pyvmm.loader.pvh_note import Note, read_notes

_IDENT = (
    FieldSpec("EI_MAG", 4, "the magic number: 7f and ELF", magic(4)),
    FieldSpec("EI_CLASS", 1, "the width of addresses", one_of({1: "ELFCLASS32", 2: "ELFCLASS64"})),
    FieldSpec("EI_DATA", 1, "the order of bytes", one_of({1: "ELFDATA2LSB", 2: "ELFDATA2MSB"})),
    FieldSpec("EI_VERSION", 1, "always 1 (EV_CURRENT)", decimal),
    FieldSpec("EI_OSABI", 1, "the system that it is for; kernels say 0, none", decimal),
    FieldSpec("EI_ABIVERSION", 1, "the version of that", decimal),
    FieldSpec("EI_PAD", 7, "zero"),
)

_TYPES = {0: "ET_NONE", 1: "ET_REL", 2: "ET_EXEC", 3: "ET_DYN", 4: "ET_CORE"}
_MACHINES = {
    3: "EM_386",
    8: "EM_MIPS",
    20: "EM_PPC",
    21: "EM_PPC64",
    22: "EM_S390",
    40: "EM_ARM",
    62: "EM_X86_64",
    183: "EM_AARCH64",
    243: "EM_RISCV",
    258: "EM_LOONGARCH",
}
_SEGMENT_TYPES = {
    0: "PT_NULL",
    1: "PT_LOAD",
    2: "PT_DYNAMIC",
    3: "PT_INTERP",
    4: "PT_NOTE",
    5: "PT_SHLIB",
    6: "PT_PHDR",
    7: "PT_TLS",
    0x6474_E550: "PT_GNU_EH_FRAME",
    0x6474_E551: "PT_GNU_STACK",
    0x6474_E552: "PT_GNU_RELRO",
    0x6474_E553: "PT_GNU_PROPERTY",
}
_RIGHTS = (
    BitSpec("PF_X", 1, "may be executed"),
    BitSpec("PF_W", 2, "may be written"),
    BitSpec("PF_R", 4, "may be read"),
)


def _ehdr(word: int) -> tuple[FieldSpec, ...]:
    """The fields behind e_ident, for addresses of ``word`` bytes."""
    return (
        FieldSpec("e_type", 2, "ET_EXEC is an executable, as kernels are", one_of(_TYPES)),
        FieldSpec("e_machine", 2, "the processor that it is for", one_of(_MACHINES)),
        FieldSpec("e_version", 4, "always 1 (EV_CURRENT)", decimal),
        FieldSpec(
            "e_entry",
            word,
            "the entry: a virtual address by the gABI, a physical one in Linux",
            address,
        ),
        FieldSpec("e_phoff", word, "where the program headers are in the file"),
        FieldSpec("e_shoff", word, "where the section headers are; loading does not need them"),
        FieldSpec("e_flags", 4, "the processor's own flags; x86 has none"),
        FieldSpec("e_ehsize", 2, "the size of this header", decimal),
        FieldSpec("e_phentsize", 2, "the size of one program header", decimal),
        FieldSpec("e_phnum", 2, "how many program headers there are", decimal),
        FieldSpec("e_shentsize", 2, "the size of one section header", decimal),
        FieldSpec("e_shnum", 2, "how many section headers there are", decimal),
        FieldSpec("e_shstrndx", 2, "which of the sections holds their names", decimal),
    )


def _phdr(word: int) -> tuple[FieldSpec, ...]:
    """A program header's fields, for addresses of ``word`` bytes."""
    p_flags = FieldSpec("p_flags", 4, "what the segment is for: r, w, x", _rights, _RIGHTS)
    # For the sake of alignment p_flags stands elsewhere in each class.
    return (
        FieldSpec(
            "p_type",
            4,
            "PT_LOAD goes to memory, PT_NOTE holds notes",
            name_of(_SEGMENT_TYPES),
        ),
        *([p_flags] if word == 8 else []),
        FieldSpec("p_offset", word, "where its bytes begin in the file"),
        FieldSpec("p_vaddr", word, "the virtual address that it is linked for", address),
        FieldSpec("p_paddr", word, "the physical address that it is loaded at", address),
        FieldSpec("p_filesz", word, "how many bytes the file has of it"),
        FieldSpec("p_memsz", word, "how many it takes in memory; what is more is zero (BSS)"),
        *([p_flags] if word == 4 else []),
        FieldSpec("p_align", word, "what offset and address are congruent by"),
    )


def _rights(p_flags: int) -> str:
    return "".join(
        letter if p_flags & mask else "-" for letter, mask in (("r", 4), ("w", 2), ("x", 1))
    )


class _Header:
    """What ``e_ident`` decides, and where the program headers are."""

    def __init__(self, data: memoryview) -> None:
        self.ident = read_fields(data, 0, _IDENT)
        values = values_of(self.ident)
        self.big_endian = values.get("EI_DATA") == ELFDATA2MSB
        self.word = 4 if values.get("EI_CLASS") == ELFCLASS32 else 8
        self.fields: tuple[Field, ...] = ()
        if len(values) == len(_IDENT):
            start = size_of(_IDENT)
            self.fields = read_fields(data, start, _ehdr(self.word), big_endian=self.big_endian)
        values = values_of(self.fields)
        specs = _phdr(self.word)
        self.program_headers: list[tuple[Field, ...]] = []
        # That they have another size is a fault; this is what they would be in the size they have.
        step = values.get("e_phentsize", 0)
        for index in range(min(values.get("e_phnum", 0), MAX_PROGRAM_HEADERS)):
            offset = values["e_phoff"] + index * step
            fields = read_fields(data, offset, specs, big_endian=self.big_endian)
            if len(values_of(fields)) < len(specs):
                break
            self.program_headers.append(fields)


def describe(data: memoryview, *, key: str = "elf", what: str = "ELF") -> Iterator[Section]:
    """The sections about the ELF file ``data``, however damaged it is."""
    header = _Header(data)
    yield Section(
        f"{key}_header",
        f"{what}: header",
        "System V gABI 4, ELF Header",
        "What kind of file this is, where execution begins, and where the program headers are.",
        header.ident + header.fields,
    )
    if header.program_headers:
        yield _describe_program_headers(header, key, what)
    notes, problem = _notes(data, header)
    if notes or problem:
        yield describe_notes(f"{key}_notes", f"{what}: notes", notes, problem)


def segments(data: memoryview) -> list[Placement]:
    """The loadable segments as the file wants them, unchecked."""
    placements = []
    for fields in _Header(data).program_headers:
        values = values_of(fields)
        if values["p_type"] == PT_LOAD and values["p_memsz"]:
            name = f"kernel {_rights(values['p_flags'])}"
            placements.append(Placement(name, values["p_paddr"], values["p_memsz"]))
    return placements


def _describe_program_headers(header: _Header, key: str, what: str) -> Section:
    specs = _phdr(header.word)
    columns = (
        Column("index", "its number"),
        *(Column(spec.name, spec.meaning) for spec in specs),
    )
    rows = []
    for index, fields in enumerate(header.program_headers):
        cells = tuple(Cell(field.value, field.shown) for field in fields)
        rows.append((Cell(index, str(index)), *cells))
    return Section(
        f"{key}_program_headers",
        f"{what}: program headers",
        "System V gABI 5, Program Header",
        "What to load where: each PT_LOAD goes to its p_paddr, the rest of its p_memsz is zeroed.",
        table=Table(columns, tuple(rows)),
    )


def _notes(data: memoryview, header: _Header) -> tuple[list[Note], str]:
    """The notes in all PT_NOTE segments, and what keeps more from being read."""
    notes: list[Note] = []
    problem = ""
    if header.big_endian:
        return notes, problem  # for no machine that pyvmm has
    for fields in header.program_headers:
        values = values_of(fields)
        if values["p_type"] != PT_NOTE:
            continue
        room = MAX_NOTES - len(notes)
        try:
            # One by one: those before a damaged one are kept.
            for note in islice(read_notes(data, values["p_offset"], values["p_filesz"]), room):
                notes.append(note)  # noqa: PERF402
        except ValueError as error:
            problem = str(error)
    return notes, problem
