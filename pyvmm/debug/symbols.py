"""Names for kernel addresses: a table from System.map, from an ELF's .symtab, or from kallsyms.

Specifications: System.map is `nm -n`'s output (address, type, name); .symtab: System V gABI,
chapter 4, "Symbol Table". For kallsyms see kallsyms.py.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.errors import ImageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# How far behind the last symbol an address may be and still be called by it.
_FARTHEST_BYTES = 0x10_0000

_EHDR_SHOFF, _EHDR_SHENTSIZE = 0x28, 0x3A
_SHDR = struct.Struct("<IIQQQQIIQQ")
_SYM = struct.Struct("<IBBHQQ")
_SHT_SYMTAB = 2
_STT_NOTYPE, _STT_OBJECT, _STT_FUNC = 0, 1, 2


class Symbol(NamedTuple):
    """A name and where it is: a guest virtual address."""

    gva: int
    name: str


class SymbolTable:
    """Symbols, found by address."""

    def __init__(self, symbols: Iterable[Symbol]) -> None:
        self._symbols = sorted(symbols)
        self._addresses = [symbol.gva for symbol in self._symbols]

    def __len__(self) -> int:
        return len(self._symbols)

    def __iter__(self) -> Iterator[Symbol]:
        return iter(self._symbols)

    def find(self, name: str) -> int | None:
        """The address of ``name``, or None."""
        return next((symbol.gva for symbol in self._symbols if symbol.name == name), None)

    def describe(self, gva: int) -> str | None:
        """``name+0x12/0x34``, as Linux writes it: the offset and the symbol's size; or None."""
        # Of several names for one address the first, as sorted.
        index = bisect_right(self._addresses, gva) - 1
        if index < 0 or gva - self._addresses[index] >= _FARTHEST_BYTES:
            return None
        while index and self._addresses[index - 1] == self._addresses[index]:
            index -= 1
        start, name = self._symbols[index]
        after = bisect_right(self._addresses, gva)
        size = self._addresses[after] - start if after < len(self._addresses) else 0
        return f"{name}+{gva - start:#x}/{size:#x}" if size else f"{name}+{gva - start:#x}"


def from_system_map(text: str) -> SymbolTable:
    """The symbols of a System.map.

    Raises ImageError if a line is none of it.
    """
    symbols = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()
        try:
            address, _type, name = words[:3]
            symbols.append(Symbol(int(address, 16), name))
        except ValueError:
            raise ImageError(
                f"line {number} of the System.map is {line[:60]!r}; expected an address, a letter "
                "and a name"
            ) from None
    return SymbolTable(symbols)


def from_elf(data: memoryview) -> SymbolTable:
    """The functions and objects of a vmlinux's .symtab; empty if it was stripped.

    Raises ImageError if the section headers, or the table, are not in the file.
    """
    try:
        (e_shoff,) = struct.unpack_from("<Q", data, _EHDR_SHOFF)
        e_shentsize, e_shnum = struct.unpack_from("<HH", data, _EHDR_SHENTSIZE)
        if e_shentsize != _SHDR.size:
            return SymbolTable([])
        sections = [_SHDR.unpack_from(data, e_shoff + i * e_shentsize) for i in range(e_shnum)]
        symbols: list[Symbol] = []
        for _, kind, _, _, offset, size, link, *_ in sections:
            if kind == _SHT_SYMTAB:
                strings_offset, strings_size = sections[link][4:6]
                strings = bytes(data[strings_offset : strings_offset + strings_size])
                symbols += _symtab(data[offset : offset + size], strings)
    except (struct.error, IndexError):
        raise ImageError("the ELF's symbols reach beyond the end of the file") from None
    return SymbolTable(symbols)


def _symtab(table: memoryview, strings: bytes) -> list[Symbol]:
    symbols = []
    for st_name, st_info, _, st_shndx, st_value, _ in _SYM.iter_unpack(
        table[: len(table) // _SYM.size * _SYM.size]
    ):
        if st_info & 0xF in (_STT_NOTYPE, _STT_OBJECT, _STT_FUNC) and st_shndx and st_value:
            name = strings[st_name : strings.find(b"\0", st_name)]
            if name:
                symbols.append(Symbol(st_value, name.decode("utf-8", "replace")))
    return symbols
