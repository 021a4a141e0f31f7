"""What is said of an image, as plain values; what it looks like is for the renderers to decide.

    Report
      Problem          the rule that is broken, and what it says
      Section          "Setup header"
        Field          setup_sects, 0x1f1, 1 byte: 39, and what that means
          Bit          LOADED_HIGH of loadflags
        Table          program headers: columns with a meaning, rows of cells
      MemoryMap
        Span           0x0100_0000, 24 MiB: "kernel r-x"

``key`` and ``name`` are stable, for programs; titles, meanings and what is ``shown`` are for
people. Strings out of an image have gone through ``printable``: they can be sent to a terminal.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

Value = int | str | None
"""A number, a text, or bytes as hexadecimal text; None if the file ends before it."""


class Bit(NamedTuple):
    """One flag of a field."""

    name: str
    mask: int
    is_set: bool
    meaning: str


class Field(NamedTuple):
    """A number or text of the image, or of what it is booted with."""

    name: str
    value: Value
    shown: str
    meaning: str
    offset: int | None = None
    """Where it lies in the file, or the structure, that the section is about."""
    size: int | None = None
    bits: tuple[Bit, ...] = ()
    source: str = ""
    """The section of the specification, where it is another than that of the whole section."""


class Column(NamedTuple):
    """What a table tells of each row."""

    name: str
    meaning: str


class Cell(NamedTuple):
    """One value of a row."""

    value: Value
    shown: str


class Table(NamedTuple):
    """Rows of cells, one for each column."""

    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


class Section(NamedTuple):
    """A part of the image, or of the boot. It has fields or a table, or only its ``about``."""

    key: str
    title: str
    source: str
    """The specification, and its section; empty if there is none to name."""
    about: str = ""
    fields: tuple[Field, ...] = ()
    table: Table | None = None


class SpanKind(Enum):
    """What a run of guest addresses is."""

    FREE = "free"
    PLACED = "placed"
    """Something that pyvmm put there, or that the image wants there."""
    RESERVED = "reserved"
    """Memory that the kernel must keep off, by the map that it is given."""
    DEVICE = "device"
    """Addresses at which a device answers."""
    HOLE = "hole"
    """Addresses at which nothing answers."""


class Span(NamedTuple):
    """A run of guest physical addresses."""

    kind: SpanKind
    name: str
    base_gpa: int
    size_bytes: int
    problem: str = ""
    """Why it cannot lie there; empty if it can."""

    @property
    def end_gpa(self) -> int:
        """The address after its last byte."""
        return self.base_gpa + self.size_bytes


class MemoryMap(NamedTuple):
    """Guest memory from address 0 up. Spans overlap only where that is a problem, and told."""

    memory_bytes: int
    spans: tuple[Span, ...]


class Problem(NamedTuple):
    """Why this cannot be booted. ``rule`` is a key of loader.rules; empty if it is none of them."""

    message: str
    rule: str
    text: str
    source: str


class Report(NamedTuple):
    """All that is said of one image."""

    name: str
    size_bytes: int
    format: str | None
    """None if it is of no format that pyvmm knows."""
    problem: Problem | None
    """None if it boots, as far as can be told without running it."""
    sections: tuple[Section, ...]
    """About the image."""
    memory_map: MemoryMap | None
    """None if nothing is, or wants to be, in it."""
    boot_sections: tuple[Section, ...]
    """About what pyvmm makes of it; none if there is a problem."""


def printable(text: str) -> str:
    """``text`` with all that is not printable escaped, so that no image can drive a terminal."""
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )
