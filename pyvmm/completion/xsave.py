"""The XSAVE family: processor state to memory and back (SDM 1 chapter 13).

    XSAVE                   each requested component at its fixed offset, initial ones as well
    XSAVEOPT                the same, without components in their initial configuration
    XSAVEC, XSAVES          the compacted format: present components one after the other
    XRSTOR, XRSTORS         back; a component whose bit in XSTATE_BV is 0 becomes initial

The *requested-feature bitmap* is EDX:EAX and XCR0 (XSAVES, XRSTORS: XCR0 | IA32_XSS). The format
of the area is xstate.py's. What an instruction does not store in the area stays there as it was.

    13.7 XSAVE   13.8 XRSTOR   13.9 XSAVEOPT   13.10 XSAVEC   13.11 XSAVES   13.12 XRSTORS

Left out: the *modified optimization*, by which a component that has not changed since it was
restored is not stored: it is the processor's choice. Components that IA32_XSS enables: KVM's
area does not have them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyvmm.completion import state as s
from pyvmm.completion import xstate as x
from pyvmm.completion.operation import Operation, Write
from pyvmm.completion.state import Fault, Unhandled
from pyvmm.completion.xstate import Component, XState

_COMPACTED = 1 << 63  # of XCOMP_BV
_LEGACY_COMPONENTS = 1 << x.X87 | 1 << x.SSE

Peek = Callable[[int, int], bytes]
"""(offset, size) -> these bytes of the memory operand."""


def _requested(op: Operation) -> int:
    return (op.gpr32(s.RDX) << 32 | op.gpr32(s.RAX)) & op.xstate.xcr0


def _numbers(bitmap: int) -> list[int]:
    """The components in ``bitmap`` that lie in the extended region, lowest first."""
    return [number for number in range(2, 63) if bitmap >> number & 1]


def _standard_offsets(bitmap: int, components: Mapping[int, Component]) -> dict[int, int]:
    return {number: components[number].offset for number in _numbers(bitmap)}


def _compacted_offsets(bitmap: int, components: Mapping[int, Component]) -> dict[int, int]:
    """Where the components of ``bitmap`` lie if these are present: SDM 1 13.4.3."""
    offsets, at = {}, x.EXTENDED
    for number in _numbers(bitmap):
        component = components[number]
        if component.is_aligned:
            at = at + 63 & ~63
        offsets[number] = at
        at += component.size_bytes
    return offsets


def _end(offsets: Mapping[int, int], xstate: XState) -> int:
    """The area's size with components at ``offsets``."""
    ends = [at + xstate.components[number].size_bytes for number, at in offsets.items()]
    return max(ends, default=x.EXTENDED)


# How much memory each of them works on.


def save_extent(op: Operation, _peek: Peek) -> int:
    """XSAVE, XSAVEOPT."""
    return _end(_standard_offsets(_requested(op), op.xstate.components), op.xstate)


def save_compacted_extent(op: Operation, _peek: Peek) -> int:
    """XSAVEC, XSAVES."""
    return _end(_compacted_offsets(_requested(op), op.xstate.components), op.xstate)


def restore_extent(op: Operation, peek: Peek) -> int:
    """XRSTOR, XRSTORS: the header says in which format, and which components are there."""
    xstate_bv = int.from_bytes(peek(x.XSTATE_BV, 8), "little")
    xcomp_bv = int.from_bytes(peek(x.XCOMP_BV, 8), "little")
    loaded = _requested(op) & xstate_bv
    offsets = _offsets(xcomp_bv, op.xstate)
    return _end({n: at for n, at in offsets.items() if loaded >> n & 1}, op.xstate)


def _offsets(xcomp_bv: int, xstate: XState) -> dict[int, int]:
    """Where components are in an area with this XCOMP_BV; of those only that the guest enabled."""
    if xcomp_bv & _COMPACTED:
        return _compacted_offsets(xcomp_bv & xstate.xcr0, xstate.components)
    return _standard_offsets(xstate.xcr0, xstate.components)


# Saving.


def xsave(op: Operation) -> Operation:
    """XSAVE."""
    requested = _requested(op)
    return _save(op, requested, requested, _standard_offsets(requested, op.xstate.components))


def xsaveopt(op: Operation) -> Operation:
    """XSAVEOPT."""
    requested = _requested(op)
    stored = requested & op.xstate.in_use
    return _save(op, requested, stored, _standard_offsets(requested, op.xstate.components))


def _save(op: Operation, requested: int, stored: int, offsets: Mapping[int, int]) -> Operation:
    xstate = op.xstate
    old_bv = int.from_bytes(op.memory[x.XSTATE_BV : x.XSTATE_BV + 8], "little")
    new_bv = old_bv & ~requested | xstate.in_use & requested
    writes = _stored_parts(xstate, stored, offsets)
    if requested & (1 << x.SSE | 1 << x.AVX):
        writes.append((x.MXCSR, xstate.area[x.MXCSR : x.MXCSR + 8]))
    writes.append((x.XSTATE_BV, new_bv.to_bytes(8, "little")))
    return op._replace(writes=tuple(writes))


def xsavec(op: Operation) -> Operation:
    """XSAVEC; XSAVES, if IA32_XSS is 0, differs by nothing that could be seen."""
    xstate = op.xstate
    if xstate.xss:
        raise Unhandled(f"XSAVES with supervisor state (IA32_XSS is {xstate.xss:#x})")
    requested = _requested(op)
    stored = requested & xstate.in_use
    # MXCSR is a part of the SSE component here: with a value of its own that is in use.
    if requested >> x.SSE & 1 and xstate.number(x.MXCSR, 4) != x.MXCSR_INITIAL:
        stored |= 1 << x.SSE
    writes = _stored_parts(xstate, stored, _compacted_offsets(requested, xstate.components))
    if stored >> x.SSE & 1:
        writes.append((x.MXCSR, xstate.area[x.MXCSR : x.MXCSR + 8]))
    header = stored.to_bytes(8, "little") + (requested | _COMPACTED).to_bytes(8, "little")
    writes.append((x.XSTATE_BV, header))
    return op._replace(writes=tuple(writes))


def _stored_parts(xstate: XState, stored: int, offsets: Mapping[int, int]) -> list[Write]:
    area = bytearray(xstate.area)
    for number in (x.X87, x.SSE, *offsets):
        if not xstate.in_use >> number & 1:
            x.set_initial(area, number, xstate.components)
    writes: list[Write] = []
    if stored >> x.X87 & 1:
        writes += [(0, bytes(area[: x.MXCSR])), (x.ST0, bytes(area[x.ST0 : x.XMM0]))]
    if stored >> x.SSE & 1:
        writes.append((x.XMM0, bytes(area[x.XMM0 : x.XMM_END])))
    for number, at in offsets.items():
        if stored >> number & 1:
            offset, size_bytes, _ = xstate.components[number]
            writes.append((at, bytes(area[offset : offset + size_bytes])))
    return writes


# Restoring.


def xrstor(op: Operation) -> Operation:
    """XRSTOR, from either format."""
    memory, xstate = op.memory, op.xstate
    xstate_bv = int.from_bytes(memory[x.XSTATE_BV : x.XSTATE_BV + 8], "little")
    xcomp_bv = int.from_bytes(memory[x.XCOMP_BV : x.XCOMP_BV + 8], "little")
    is_compacted = bool(xcomp_bv & _COMPACTED)
    if is_compacted:
        ok = not (xcomp_bv & ~_COMPACTED & ~xstate.xcr0 or xstate_bv & ~xcomp_bv)
        ok = ok and not any(memory[x.HEADER + 16 : x.EXTENDED])
    else:
        ok = not (xstate_bv & ~xstate.xcr0 or any(memory[x.HEADER + 8 : x.HEADER + 24]))
    if not ok:
        raise Fault.general_protection()
    return _restore(op, xstate_bv, is_compacted, _offsets(xcomp_bv, xstate))


def xrstors(op: Operation) -> Operation:
    """XRSTORS: from the compacted format only."""
    if op.xstate.xss:
        raise Unhandled(f"XRSTORS with supervisor state (IA32_XSS is {op.xstate.xss:#x})")
    if not int.from_bytes(op.memory[x.XCOMP_BV : x.XCOMP_BV + 8], "little") & _COMPACTED:
        raise Fault.general_protection()
    return xrstor(op)


def _restore(
    op: Operation, xstate_bv: int, is_compacted: bool, offsets: Mapping[int, int]
) -> Operation:
    memory, xstate = op.memory, op.xstate
    requested = _requested(op)
    loaded = requested & xstate_bv
    area = bytearray(xstate.area)
    for number in range(63):
        if requested & ~xstate_bv & 1 << number:
            x.set_initial(area, number, xstate.components)
    if loaded >> x.X87 & 1:
        area[: x.MXCSR] = memory[: x.MXCSR]
        area[x.ST0 : x.XMM0] = memory[x.ST0 : x.XMM0]
    if loaded >> x.SSE & 1:
        area[x.XMM0 : x.XMM_END] = memory[x.XMM0 : x.XMM_END]
    for number in _numbers(loaded):
        offset, size_bytes, _ = xstate.components[number]
        at = offsets[number]
        area[offset : offset + size_bytes] = memory[at : at + size_bytes]
    in_use = xstate.in_use & ~requested | loaded
    mxcsr = _restored_mxcsr(op, requested, loaded, is_compacted)
    if mxcsr != area[x.MXCSR : x.MXCSR + 4]:
        area[x.MXCSR : x.MXCSR + 4] = mxcsr
        # KVM takes MXCSR only with a component that uses it.
        if not in_use >> x.SSE & 1:
            x.set_initial(area, x.SSE, xstate.components)
            in_use |= 1 << x.SSE
    area[x.XSTATE_BV : x.XSTATE_BV + 8] = in_use.to_bytes(8, "little")
    return op.set_xstate(xstate._replace(area=bytes(area)))


def _restored_mxcsr(op: Operation, requested: int, loaded: int, is_compacted: bool) -> bytes:
    """MXCSR after the restore: by the standard format it comes with SSE and AVX, initial or not."""
    if is_compacted:
        if requested >> x.SSE & 1 and not loaded >> x.SSE & 1:
            return x.MXCSR_INITIAL.to_bytes(4, "little")
        comes = bool(loaded >> x.SSE & 1)
    else:
        comes = bool(requested & (1 << x.SSE | 1 << x.AVX))
    if not comes:
        return op.xstate.area[x.MXCSR : x.MXCSR + 4]
    value = op.memory[x.MXCSR : x.MXCSR + 4]
    if int.from_bytes(value, "little") & ~op.xstate.mxcsr_mask:
        raise Fault.general_protection()
    return value


# Which components there are.


def xgetbv(op: Operation) -> Operation:
    """XGETBV: XCR0, or with ECX = 1 those of it that are in use."""
    number = op.gpr32(s.RCX)
    if number > 1:
        raise Fault.general_protection()
    xcr0 = op.xstate.xcr0
    return op.set_edx_eax(xcr0 & op.xstate.in_use if number else xcr0)


def xsetbv(op: Operation) -> Operation:
    """XSETBV: set XCR0, if it is a combination that can be (SDM 1 13.3)."""
    value = op.gpr32(s.RDX) << 32 | op.gpr32(s.RAX)
    avx512 = 1 << x.OPMASK | 1 << x.ZMM_HI256 | 1 << x.HI16_ZMM
    ok = op.gpr32(s.RCX) == 0 and value >> x.X87 & 1
    ok = ok and not (value >> x.AVX & 1 and not value >> x.SSE & 1)
    ok = ok and value & avx512 in (0, avx512) and not (value & avx512 and not value >> x.AVX & 1)
    ok = ok and not value & ~_LEGACY_COMPONENTS & ~sum(1 << n for n in op.xstate.components)
    if not ok:
        raise Fault.general_protection()
    return op.set_xstate(op.xstate._replace(xcr0=value))
