"""The linear address of a memory operand, or the exception that forming it raises.

    effective address = base + index * scale + displacement, cut to the address size
    linear address    = segment base + effective address

In 64-bit mode only FS and GS have a base, there are no limits, and the address must be canonical:
its highest bits all alike (SDM 1 3.3.7). In the other modes the whole operand must be within the
segment's limit (SDM 3A 5.3). Either fails with #SS(0) in the stack segment, else with #GP(0).

Left out: type checks of segments (a write by a read-only segment, a null selector).
"""

from __future__ import annotations

from iced_x86 import CodeSize, Register, UsedMemory

from pyvmm.completion import state as s
from pyvmm.completion.operation import gpr_value
from pyvmm.completion.state import Fault, State

_ADDRESS_MASK = {
    CodeSize.CODE16: 0xFFFF,
    CodeSize.CODE32: 0xFFFF_FFFF,
    CodeSize.CODE64: 0xFFFF_FFFF_FFFF_FFFF,
}
_EXPAND_DOWN = 1 << 2  # of a data segment's type, SDM 3A table 3-1
_CODE = 1 << 3


def linear_address(memory: UsedMemory, size_bytes: int, state: State) -> int:
    """Where the operand's first byte is. Raises Fault (#GP, #SS)."""
    offset = memory.displacement
    if memory.base != Register.NONE:
        offset += gpr_value(state, memory.base)
    if memory.index != Register.NONE:
        offset += gpr_value(state, memory.index) * memory.scale
    offset &= _ADDRESS_MASK[memory.address_size]
    number = memory.segment - Register.ES
    segment = state.segments[number]
    if state.is_64bit:
        base = segment.base if number in (s.FS, s.GS) else 0
        address = base + offset & 0xFFFF_FFFF_FFFF_FFFF
        ok = is_canonical(address, state) and is_canonical(address + size_bytes - 1, state)
    else:
        address = segment.base + offset & 0xFFFF_FFFF
        ok = _is_within_limit(segment, offset, size_bytes)
    if not ok:
        raise Fault(s.SS if number == s.SEGMENT_SS else s.GP, 0)
    return address


def is_canonical(address: int, state: State) -> bool:
    """Whether the bits of ``address`` above those that are translated are copies of the highest."""
    top = address >> (56 if state.cr4 & s.CR4_LA57 else 47)
    return top in (0, 0xFF if state.cr4 & s.CR4_LA57 else 0x1_FFFF)


def _is_within_limit(segment: s.Segment, offset: int, size_bytes: int) -> bool:
    last = offset + size_bytes - 1
    if segment.type & (_CODE | _EXPAND_DOWN) == _EXPAND_DOWN:
        return offset > segment.limit and last <= (0xFFFF_FFFF if segment.db else 0xFFFF)
    return last <= segment.limit
