"""SSE, SSSE3, AVX and AVX-512VL instructions on integers in vectors.

What the text of Debian's kernels holds (BLAKE2s, SipHash's and others' glue; memory copied by
SSE), and those that come with it for nothing. SDM 2, each under its name.

An instruction has a legacy form, whose first operand is both destination and first source, and a
VEX form with three operands; ``_sources`` knows. On vectors wider than 128 bits most work in each
128-bit *lane* by itself.

Left out: masks, broadcasts and rounding of EVEX; MMX registers; floating point.
"""

from __future__ import annotations

import operator
from collections.abc import Callable

from pyvmm.completion import xstate as x
from pyvmm.completion.operation import Operation

Run = Callable[[Operation], Operation]

_LANE_BYTES = 16


def _sources(op: Operation) -> tuple[int, int]:
    """The values of the two sources, without an immediate."""
    if op.is_legacy:
        return op.read(0), op.read(1)
    return op.read(1), op.read(2)


def _split(value: int, size_bytes: int, element_bytes: int) -> list[int]:
    """The elements of a vector, lowest first."""
    data = value.to_bytes(size_bytes, "little")
    return [
        int.from_bytes(data[at : at + element_bytes], "little")
        for at in range(0, size_bytes, element_bytes)
    ]


def _join(elements: list[int], element_bytes: int) -> int:
    mask = (1 << 8 * element_bytes) - 1
    data = b"".join((element & mask).to_bytes(element_bytes, "little") for element in elements)
    return int.from_bytes(data, "little")


def bitwise(function: Callable[[int, int], int]) -> Run:
    """The whole vectors combined by ``function``."""

    def run(op: Operation) -> Operation:
        return op.write(0, function(*_sources(op)))

    return run


def and_not(first: int, second: int) -> int:
    """What PANDN does."""
    return ~first & second


def elementwise(element_bytes: int, function: Callable[[int, int], int]) -> Run:
    """Each element of the one with its like of the other; a result that is too long is cut."""

    def run(op: Operation) -> Operation:
        size_bytes = op.size_bytes(0)
        first, second = (_split(value, size_bytes, element_bytes) for value in _sources(op))
        return op.write(0, _join(list(map(function, first, second)), element_bytes))

    return run


add, subtract = operator.add, operator.sub


def equal(first: int, second: int) -> int:
    """All ones if the elements are equal: PCMPEQ."""
    return -1 if first == second else 0


def _by_lane(op: Operation, function: Callable[[bytes, bytes], bytes]) -> Operation:
    size_bytes = op.size_bytes(0)
    first, second = (value.to_bytes(size_bytes, "little") for value in _sources(op))
    result = b""
    for at in range(0, size_bytes, _LANE_BYTES):
        end = at + _LANE_BYTES
        result += function(first[at:end], second[at:end])
    return op.write(0, int.from_bytes(result, "little"))


def unpack(element_bytes: int, *, high: bool) -> Run:
    """PUNPCKL, PUNPCKH: the elements of both sources' low or high halves, alternating."""
    half = _LANE_BYTES // 2
    start = half if high else 0

    def interleave(first: bytes, second: bytes) -> bytes:
        result = b""
        for at in range(start, start + half, element_bytes):
            result += first[at : at + element_bytes] + second[at : at + element_bytes]
        return result

    return lambda op: _by_lane(op, interleave)


def pshufb(op: Operation) -> Operation:
    """Each byte is one of the first source's, as the second says; 0 if that has bit 7 set."""

    def shuffle(table: bytes, control: bytes) -> bytes:
        return bytes(0 if index & 0x80 else table[index & 0xF] for index in control)

    return _by_lane(op, shuffle)


def palignr(op: Operation) -> Operation:
    """Both sources side by side, shifted right by an immediate number of bytes."""
    shift = op.read(op.insn.op_count - 1)

    def align(high: bytes, low: bytes) -> bytes:
        return (low + high + bytes(256))[shift : shift + _LANE_BYTES]

    return _by_lane(op, align)


def pshufd(op: Operation) -> Operation:
    """Each 32-bit element of a lane is one of the lane, two bits of an immediate each."""
    order = op.read(2)
    elements = _split(op.read(1), op.size_bytes(0), 4)
    chosen = [elements[(at & ~3) + (order >> 2 * (at & 3) & 3)] for at in range(len(elements))]
    return op.write(0, _join(chosen, 4))


def _shift_count(op: Operation) -> int:
    """By an immediate, or by the low 64 bits of a vector."""
    number = op.insn.op_count - 1
    return op.read(number) & 0xFFFF_FFFF_FFFF_FFFF


def _shifted(op: Operation) -> int:
    return op.read(0 if op.is_legacy else 1)


def shift_left(element_bytes: int) -> Run:
    """PSLL: zeros in; all zero if by the element's size or more."""

    def run(op: Operation) -> Operation:
        count = min(_shift_count(op), 8 * element_bytes)
        elements = _split(_shifted(op), op.size_bytes(0), element_bytes)
        return op.write(0, _join([element << count for element in elements], element_bytes))

    return run


def shift_right(element_bytes: int, *, signed: bool = False) -> Run:
    """PSRL, PSRA: zeros in, or copies of the sign."""
    width = 8 * element_bytes

    def run(op: Operation) -> Operation:
        count = min(_shift_count(op), width)
        elements = _split(_shifted(op), op.size_bytes(0), element_bytes)
        if signed:
            elements = [element - (element >> (width - 1) << width) for element in elements]
        return op.write(0, _join([element >> count for element in elements], element_bytes))

    return run


def shift_bytes(op: Operation, *, left: bool) -> Operation:
    """PSLLDQ, PSRLDQ: each lane as one number, shifted by bytes."""
    bits = 8 * min(_shift_count(op), _LANE_BYTES)
    lanes = _split(_shifted(op), op.size_bytes(0), _LANE_BYTES)
    shifted = [lane << bits if left else lane >> bits for lane in lanes]
    return op.write(0, _join(shifted, _LANE_BYTES))


def rotate_dwords(op: Operation, *, left: bool) -> Operation:
    """VPROLD, VPRORD: each 32-bit element rotated by an immediate."""
    count = op.read(2) % 32
    if left:
        count = -count % 32
    elements = _split(op.read(1), op.size_bytes(0), 4)
    return op.write(0, _join([e >> count | e << (32 - count) for e in elements], 4))


def vpermi2d(op: Operation) -> Operation:
    """Each 32-bit element is one of both sources' (table of twice as many), as the first says."""
    size_bytes = op.size_bytes(0)
    table = _split(op.read(1), size_bytes, 4) + _split(op.read(2), size_bytes, 4)
    indices = _split(op.read(0), size_bytes, 4)
    return op.write(0, _join([table[index % len(table)] for index in indices], 4))


def movq(op: Operation) -> Operation:
    """The low 64 bits; a vector register gets zeros above them."""
    return op.write(0, op.read(1) & 0xFFFF_FFFF_FFFF_FFFF)


def vextracti128(op: Operation) -> Operation:
    """One lane of a YMM register."""
    return op.write(0, op.read(1) >> 128 * (op.read(2) & 1))


def vinserti128(op: Operation) -> Operation:
    """A YMM register with one lane replaced."""
    shift = 128 * (op.read(3) & 1)
    kept = op.read(1) & ~((1 << 128) - 1 << shift)
    return op.write(0, kept | (op.read(2) & (1 << 128) - 1) << shift)


def vzero(op: Operation, kept_bytes: int) -> Operation:
    """VZEROUPPER keeps 16 bytes of YMM0 to YMM15 (8 of them outside 64-bit mode), VZEROALL none."""
    xstate = op.xstate
    for number in range(16 if op.state.is_64bit else 8):
        low = x.vector(xstate, number, kept_bytes)
        xstate = x.with_vector(xstate, number, low, kept_bytes, zero_above=True)
    return op.set_xstate(xstate)
