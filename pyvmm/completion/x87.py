"""The x87 instructions that kernels use outside of saving and restoring: SDM 2.

Kernels do no floating-point arithmetic. They wait for pending exceptions, clear them, and load an
integer to overwrite stale pointers. LDMXCSR and STMXCSR are here as well.

Left out: FIP, FDP and FOP, the pointers for exception handlers, are not updated.
"""

from __future__ import annotations

from pyvmm.completion import state as s
from pyvmm.completion import xstate as x
from pyvmm.completion.operation import Operation
from pyvmm.completion.state import Fault, Unhandled

# FSW, SDM 1 8.1.3
_INVALID, _STACK_FAULT, _ERROR_SUMMARY, _C1 = 1 << 0, 1 << 6, 1 << 7, 1 << 9
_TOP_SHIFT = 11
_BUSY = 1 << 15
_EXCEPTIONS = _BUSY | 0xFF

_EXPONENT_BIAS = 0x3FFF
_SIGN = 1 << 79
_INDEFINITE = 0xFFFF_C000_0000_0000_0000  # the default QNaN, SDM 1 table 4-3
_ALL_EMPTY = 0  # the tag word as FXSAVE has it: one bit a register, 1 for valid


def check_pending(op: Operation) -> None:
    """#MF if an exception of an earlier instruction is still to be told."""
    if op.xstate.number(x.FSW, 2) & _ERROR_SUMMARY:
        if not op.state.cr0 & s.CR0_NE:
            raise Unhandled("an x87 exception with CR0.NE clear, told by an interrupt")
        raise Fault(s.MF)


def fwait(op: Operation) -> Operation:
    """Tell of a pending x87 exception."""
    check_pending(op)
    return op


def fnclex(op: Operation) -> Operation:
    """Forget pending exceptions."""
    status = op.xstate.number(x.FSW, 2) & ~_EXCEPTIONS
    return op.set_xstate(op.xstate.with_number(x.FSW, 2, status, x.X87))


def emms(op: Operation) -> Operation:
    """All x87 registers are empty, and TOP is 0 (SDM 3A table 13-2)."""
    check_pending(op)
    xstate = op.xstate
    if not xstate.in_use >> x.X87 & 1:
        return op
    status = xstate.number(x.FSW, 2)
    # The area has the registers from ST0, the one at TOP, on.
    first = x.XMM0 - 16 * (status >> _TOP_SHIFT & 7)
    stack = (xstate.area[first : x.XMM0] + xstate.area[x.ST0 : first])[: x.XMM0 - x.ST0]
    parts = [
        (x.FSW, (status & ~(7 << _TOP_SHIFT)).to_bytes(2, "little")),
        (x.FTW, bytes([_ALL_EMPTY])),
        (x.ST0, stack),
    ]
    return op.set_xstate(xstate.with_parts(x.X87, parts))


def fild(op: Operation) -> Operation:
    """Push a signed integer; exact, since the significand has 64 bits."""
    xstate = op.xstate
    status, tags = xstate.number(x.FSW, 2), xstate.number(x.FTW, 1)
    top = (status >> _TOP_SHIFT) - 1 & 7
    status = status & ~(7 << _TOP_SHIFT | _C1) | top << _TOP_SHIFT
    if tags >> top & 1:
        if not xstate.number(x.FCW, 2) & _INVALID:
            raise Unhandled("an x87 stack overflow that is not masked")
        status |= _INVALID | _STACK_FAULT | _C1
        value = _INDEFINITE
    else:
        width = 8 * op.size_bytes(0)
        source = op.read(0)
        value = _extended(source - (source >> (width - 1) << width))
    # ST0 is the register at TOP, ST1 the next: a push moves all of them up, and the last is gone.
    stack = value.to_bytes(10, "little") + bytes(6) + xstate.area[x.ST0 : x.XMM0 - 16]
    parts = [
        (x.FSW, status.to_bytes(2, "little")),
        (x.FTW, (tags | 1 << top).to_bytes(1, "little")),
        (x.ST0, stack),
    ]
    return op.set_xstate(xstate.with_parts(x.X87, parts))


def _extended(value: int) -> int:
    """``value`` in the double extended-precision format (SDM 1 4.2.2)."""
    if value == 0:
        return 0
    magnitude = abs(value)
    exponent = magnitude.bit_length() - 1
    significand = magnitude << (63 - exponent)
    return (_SIGN if value < 0 else 0) | (_EXPONENT_BIAS + exponent) << 64 | significand


def ldmxcsr(op: Operation) -> Operation:
    """Load MXCSR."""
    value = op.read(0)
    if value & ~op.xstate.mxcsr_mask:
        raise Fault.general_protection()
    return op.set_xstate(op.xstate.with_number(x.MXCSR, 4, value, x.SSE))


def stmxcsr(op: Operation) -> Operation:
    """Store MXCSR."""
    return op.write(0, op.xstate.number(x.MXCSR, 4))
