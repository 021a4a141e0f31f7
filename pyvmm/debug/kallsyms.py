"""kallsyms: the symbols that a kernel carries for itself, found in its memory.

A stock kernel's vmlinux has no .symtab, but CONFIG_KALLSYMS puts all names into its data. Nothing
says where, so it is found by what it looks like. The parts, each aligned to 8:

    until Linux 6.3                           since 6.4
    offsets[n]        4 bytes each            num_syms
    relative_base     8                       names
    num_syms          4: n                    markers
    names             n times: length, then   token_table
                      that many token numbers token_index
    markers[n/256]    4 each: where in names  offsets[n]
                      every 256th begins      relative_base
    seqs_of_names[n]  3 each: not in all
    token_table       256 strings with NULs
    token_index[256]  2 each: where in it

A name is its tokens joined; its first character is the symbol's type, nm's. Characters that no
name needs a token for stand for themselves, the digits among them: "0", "1", "2" in a row, with
NULs between, give the table away. Names come before it: in the new order with markers between
that end at it; in the old order behind a base, which is an address, and a small number.

An address is relative_base - 1 - offset for a negative offset; a positive one is the address
itself, of a per-CPU variable. Without CONFIG_KALLSYMS_ABSOLUTE_PERCPU (no SMP) it is always
relative_base + offset.

Source: Linux 6.1 and 6.12, scripts/kallsyms.c (write_src) and kernel/kallsyms.c.
"""

from __future__ import annotations

import re
import struct
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.debug.symbols import Symbol, SymbolTable
from pyvmm.units import MiB, align_up

if TYPE_CHECKING:
    from collections.abc import Iterator

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_FIRST_DIGIT = ord("0")
_TOKENS = 256
_MARKED = 256
_ALIGNMENT = 8
_LOWEST_BASE = 0xFFFF_FFFF_8000_0000
_MAX_NAMES_BYTES = 16 * MiB
_MAX_TABLES_BYTES = 32 * MiB
# relative_base, an address of the kernel's, before num_syms, less than a million, and padding.
_BASE_AND_COUNT = re.compile(rb"...[\x80-\xff]\xff{4}(?=..[\x01-\x0f\x00]\x00{5})", re.DOTALL)
_LONGEST_256_NAMES = 256 * 514


class _Tokens(NamedTuple):
    start: int
    end: int
    """Of token_index."""
    tokens: list[bytes]


def find_symbols(image: bytes) -> SymbolTable | None:
    """The symbols of the kernel whose memory, from its first to its last byte, is ``image``.

    None if there are none, or they are not where they are expected.
    """
    for found in _find_tokens(image):
        if num_syms_at := _find_new_order(image, found.start):
            count = _u32(image, num_syms_at)
            offsets_at = align_up(found.end, _ALIGNMENT)
            base_at = align_up(offsets_at + 4 * count, _ALIGNMENT)
        elif num_syms_at := _find_old_order(image, found.start):
            count = _u32(image, num_syms_at)
            base_at = num_syms_at - 8
            offsets_at = base_at - align_up(4 * count, _ALIGNMENT)
        else:
            continue
        addresses = _addresses(image, offsets_at, base_at, count)
        if addresses is not None:
            texts = _names(image, num_syms_at + _ALIGNMENT, count, found.tokens)
            return SymbolTable(
                Symbol(gva, text[1:]) for gva, text in zip(addresses, texts, strict=True)
            )
    return None


def _find_tokens(image: bytes) -> Iterator[_Tokens]:
    """token_table and token_index, wherever the bytes may be them."""
    digits = image.find(_DIGITS)
    while digits >= 0:
        end = digits
        for _ in range(_TOKENS - _FIRST_DIGIT):
            end = image.find(b"\0", end) + 1
            if not end:
                return
        index_at = align_up(end, _ALIGNMENT)
        raw = image[index_at : index_at + 2 * _TOKENS]
        if len(raw) == 2 * _TOKENS:
            index = struct.unpack(f"<{_TOKENS}H", raw)
            start = digits - index[_FIRST_DIGIT]
            if index[0] == 0 and start >= 0 and all(a < b for a, b in pairwise(index)):
                tokens = [image[start + i : image.index(b"\0", start + i)] for i in index]
                yield _Tokens(start, index_at + 2 * _TOKENS, tokens)
        digits = image.find(_DIGITS, digits + 1)


def _find_new_order(image: bytes, token_table: int) -> int | None:
    """Where num_syms is, if it is followed by names, markers and ``token_table``."""
    position = token_table - 4
    if position >= 4 and _u32(image, position) == 0:
        position -= 4  # padding
    markers: list[int] = []
    while position >= 0:
        marker = _u32(image, position)
        if markers and marker >= markers[-1]:
            return None
        markers.append(marker)
        if marker == 0:
            break
        position -= 4
    markers.reverse()
    if len(markers) < 2 or markers[0] or markers[-1] > _MAX_NAMES_BYTES:
        return None
    highest = position - markers[-1] - _ALIGNMENT
    for candidate in range(highest & ~(_ALIGNMENT - 1), highest - _LONGEST_256_NAMES, -_ALIGNMENT):
        if candidate < 0:
            return None
        if -(-_u32(image, candidate) // _MARKED) == len(markers):
            end_of_marked, _ = _ends_of_names(image, candidate + _ALIGNMENT, _MARKED)
            if end_of_marked == markers[1]:
                return candidate
    return None


def _find_old_order(image: bytes, token_table: int) -> int | None:
    """Where num_syms is, if relative_base stands before, and names and markers are behind."""
    lowest = max(0, token_table - _MAX_TABLES_BYTES)
    for match in _BASE_AND_COUNT.finditer(image, lowest, token_table):
        num_syms_at = match.end()
        count = _u32(image, num_syms_at)
        start = num_syms_at + _ALIGNMENT
        if num_syms_at % _ALIGNMENT or not _MARKED < count < token_table - start:
            continue
        end_of_marked, end = _ends_of_names(image, start, count)
        markers = align_up(start + end, _ALIGNMENT)
        if end and _u32(image, markers) == 0 and _u32(image, markers + 4) == end_of_marked:
            return num_syms_at
    return None


def _ends_of_names(image: bytes, start: int, count: int) -> tuple[int, int]:
    """How far from ``start`` the 256th of ``count`` names ends, and the last; 0 if that is none."""
    position, end_of_marked = start, 0
    for number in range(1, count + 1):
        if position + 1 >= len(image):
            return 0, 0
        length, position = _length(image, position)
        if length == 0:
            return 0, 0
        position += length
        if number == _MARKED:
            end_of_marked = position - start
    return end_of_marked, position - start


def _length(image: bytes, position: int) -> tuple[int, int]:
    """A name's length and where its tokens begin."""
    length = image[position]
    if length & 0x80:
        return length & 0x7F | image[position + 1] << 7, position + 2
    return length, position + 1


def _names(image: bytes, start: int, count: int, tokens: list[bytes]) -> Iterator[str]:
    position = start
    for _ in range(count):
        length, position = _length(image, position)
        name = b"".join([tokens[number] for number in image[position : position + length]])
        yield name.decode("ascii", "replace")
        position += length


def _addresses(image: bytes, offsets_at: int, base_at: int, count: int) -> list[int] | None:
    """The symbols' addresses; None if what is there are none."""
    if offsets_at < 0 or base_at + 8 > len(image):
        return None
    (base,) = struct.unpack_from("<Q", image, base_at)
    if base < _LOWEST_BASE:
        return None
    offsets = struct.unpack_from(f"<{count}i", image, offsets_at)
    if min(offsets) < 0:
        return [offset if offset >= 0 else base - 1 - offset for offset in offsets]
    return [base + offset for offset in offsets]


def _u32(image: bytes, position: int) -> int:
    return int.from_bytes(image[position : position + 4], "little")
