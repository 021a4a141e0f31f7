"""BMI1 and BMI2: bits of general registers. SDM 2, each instruction under its name.

All but BEXTR, BZHI and the BLS group leave the flags alone. Undefined flags are left as they were.
"""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.completion import state as s
from pyvmm.completion.operation import Operation
from pyvmm.completion.state import CF, OF, SF, ZF


def _width(op: Operation) -> int:
    return 8 * op.size_bytes(0)


def _result_flags(op: Operation, result: int) -> int:
    """SF and ZF of ``result``."""
    return (SF if result >> (_width(op) - 1) & 1 else 0) | (0 if result else ZF)


def andn(op: Operation) -> Operation:
    """Not the first source, and the second."""
    result = ~op.read(1) & op.read(2)
    return op.write(0, result).set_flags(CF | OF | SF | ZF, _result_flags(op, result))


def bextr(op: Operation) -> Operation:
    """A field: its first bit and length are the control operand's first two bytes."""
    control = op.read(2)
    start, length = control & 0xFF, control >> 8 & 0xFF
    result = op.read(1) >> start & (1 << length) - 1
    return op.write(0, result).set_flags(CF | OF | ZF, 0 if result else ZF)


def bzhi(op: Operation) -> Operation:
    """The bits below the one whose number is the index operand's first byte."""
    index = op.read(2) & 0xFF
    result = op.read(1) & (1 << index) - 1
    flags = _result_flags(op, result) | (CF if index >= _width(op) else 0)
    return op.write(0, result).set_flags(CF | OF | SF | ZF, flags)


def _lowest_bit(change: Callable[[int], int], carry_if_zero: bool) -> Callable[..., Operation]:
    def run(op: Operation) -> Operation:
        source = op.read(1)
        result = change(source) & (1 << _width(op)) - 1
        carry = CF if (source == 0) == carry_if_zero else 0
        flags = _result_flags(op, result) | carry
        return op.write(0, result).set_flags(CF | OF | SF | ZF, flags)

    return run


blsi = _lowest_bit(lambda source: source & -source, carry_if_zero=False)
blsmsk = _lowest_bit(lambda source: source ^ (source - 1), carry_if_zero=True)
blsr = _lowest_bit(lambda source: source & (source - 1), carry_if_zero=True)


def mulx(op: Operation) -> Operation:
    """RDX times the source, unsigned: high half to the first operand, low half to the second."""
    width = _width(op)
    product = (op.state.gpr[s.RDX] & (1 << width) - 1) * op.read(2)
    # If both are the same register it gets the high half.
    return op.write(1, product).write(0, product >> width)


def pdep(op: Operation) -> Operation:
    """Deposit the first source's low bits where the mask has bits."""
    source, mask, result = op.read(1), op.read(2), 0
    while mask:
        lowest = mask & -mask
        if source & 1:
            result |= lowest
        source >>= 1
        mask &= mask - 1
    return op.write(0, result)


def pext(op: Operation) -> Operation:
    """Collect the bits of the first source where the mask has bits."""
    source, mask, result, position = op.read(1), op.read(2), 0, 0
    while mask:
        lowest = mask & -mask
        if source & lowest:
            result |= 1 << position
        position += 1
        mask &= mask - 1
    return op.write(0, result)


def rorx(op: Operation) -> Operation:
    """Rotate right by an immediate."""
    width, source = _width(op), op.read(1)
    count = op.read(2) % width
    return op.write(0, source >> count | source << (width - count))


def shlx(op: Operation) -> Operation:
    """Shift left by a register."""
    return op.write(0, op.read(1) << op.read(2) % _width(op))


def shrx(op: Operation) -> Operation:
    """Shift right by a register, zeros in."""
    return op.write(0, op.read(1) >> op.read(2) % _width(op))


def sarx(op: Operation) -> Operation:
    """Shift right by a register, copies of the sign in."""
    width, source = _width(op), op.read(1)
    signed = source - (source >> (width - 1) << width)
    return op.write(0, signed >> op.read(2) % width)
