"""A format's table of fields, and how to read what it says from bytes that may be damaged.

A describer writes the specification's table down once, in its order:

    EHDR = (
        FieldSpec("e_type", 2, "what kind of file it is", one_of(TYPES)),
        FieldSpec("e_machine", 2, "the processor that it is for", one_of(MACHINES)),
        ...

and ``read_fields`` makes Fields of it. Offsets follow from the sizes. Where the bytes end, the
field that is cut off says so, and the rest is left out: how far a file goes is part of what is to
be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from pyvmm.explain.model import Bit, Cell, Field, printable
from pyvmm.units import KiB

Show = Callable[[int], str]


class BitSpec(NamedTuple):
    """One flag: its name in the specification, and what it means if set."""

    name: str
    mask: int
    meaning: str


class FieldSpec(NamedTuple):
    """A field of at most 8 bytes, read as an unsigned number."""

    name: str
    size: int
    meaning: str
    show: Show = hex
    bits: tuple[BitSpec, ...] = ()
    source: str = ""


def read_fields(
    data: memoryview, offset: int, specs: Iterable[FieldSpec], *, big_endian: bool = False
) -> tuple[Field, ...]:
    """What ``data`` has at ``offset`` for each of ``specs``, up to the first that is cut off."""
    fields = []
    for spec in specs:
        raw = bytes(data[offset : offset + spec.size])
        if len(raw) < spec.size:
            fields.append(Field(spec.name, None, "cut off", spec.meaning, offset, spec.size))
            break
        value = int.from_bytes(raw, "big" if big_endian else "little")
        fields.append(make_field(spec, value, offset))
        offset += spec.size
    return tuple(fields)


def make_field(spec: FieldSpec, value: int, offset: int | None = None) -> Field:
    """The Field for ``spec`` with this value."""
    bits = tuple(Bit(bit.name, bit.mask, bool(value & bit.mask), bit.meaning) for bit in spec.bits)
    return Field(
        spec.name, value, spec.show(value), spec.meaning, offset, spec.size, bits, spec.source
    )


def size_of(specs: Iterable[FieldSpec]) -> int:
    """The bytes that the whole structure takes."""
    return sum(spec.size for spec in specs)


def values_of(fields: Iterable[Field]) -> dict[str, int]:
    """The numbers in ``fields`` by name; those that are cut off are missing."""
    return {field.name: field.value for field in fields if isinstance(field.value, int)}


# How a number is shown.


def decimal(value: int) -> str:
    """``39``."""
    return str(value)


def address(value: int) -> str:
    """A guest address as layout.py writes them: ``0x0100_0000``."""
    digits = f"{value:x}".rjust(8, "0")
    first = len(digits) % 4
    groups = [digits[:first]] * bool(first)
    groups += [digits[i : i + 4] for i in range(first, len(digits), 4)]
    return "0x" + "_".join(groups)


def size(value: int) -> str:
    """Bytes with the unit in which people think of so many: ``0x62a000 (6.2 MiB)``."""
    return f"{value:#x} ({human_size(value)})" if value >= KiB else f"{value:#x}"


def human_size(value: int) -> str:
    """``6.2 MiB``: at most one decimal, so not exact."""
    index = min((value.bit_length() - 1) // 10, len(_UNITS) - 1) if value else 0
    number = f"{value / (1 << 10 * index):.1f}".removesuffix(".0")
    return f"{number} {_UNITS[index]}" if value != 1 else "1 byte"


_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def magic(length: int) -> Show:
    """Of a magic number, the characters that it was chosen for: ``"HdrS"``."""
    return lambda value: f'"{printable(_characters(value, length))}"'


def text(length: int) -> Show:
    """Of characters that are padded with NULs, those before: ``.setup``."""
    return lambda value: printable(_characters(value, length).rstrip(chr(0)))


def _characters(value: int, length: int) -> str:
    return value.to_bytes(length, "little").decode("latin-1")


def one_of(names: Mapping[int, str]) -> Show:
    """The name of an enumeration's value, with the value: ``2 (ET_EXEC)``."""

    def show(value: int) -> str:
        return f"{value} ({names[value]})" if value in names else str(value)

    return show


def name_of(names: Mapping[int, str]) -> Show:
    """The name alone, where there is one, for tables: ``PT_LOAD``."""
    return lambda value: names.get(value, hex(value))


def cell(value: int, show: Show = hex) -> Cell:
    """A table's cell with a number."""
    return Cell(value, show(value))


def text_cell(text: str) -> Cell:
    """A table's cell with text."""
    return Cell(text, text)
