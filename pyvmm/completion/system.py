"""Instructions of the system: segments, TSC, protection keys, TLB. SDM 2, each under its name."""

from __future__ import annotations

from collections.abc import Callable

from pyvmm.completion import state as s
from pyvmm.completion import xstate as x
from pyvmm.completion.addressing import is_canonical
from pyvmm.completion.operation import Operation
from pyvmm.completion.state import Fault, State

# A descriptor's second half, SDM 3A 3.4.5
_WRITABLE_OR_READABLE = 1 << 9
_CONFORMING = 1 << 10
_CODE = 1 << 11
_NOT_SYSTEM = 1 << 12
_DPL_SHIFT = 13


def stac(op: Operation) -> Operation:
    """Let the supervisor at user pages."""
    return op.set_flags(s.AC, s.AC)


def clac(op: Operation) -> Operation:
    """Keep the supervisor from user pages."""
    return op.set_flags(s.AC, 0)


def invpcid(op: Operation) -> Operation:
    """Forget cached translations. We have KVM forget all of them, which is always right."""
    kind, descriptor = op.read(0), op.read(1)
    pcid, address = descriptor & 0xFFFF_FFFF_FFFF_FFFF, descriptor >> 64
    ok = kind <= 3 and pcid <= 0xFFF
    if kind <= 1:
        ok = ok and (pcid == 0 or bool(op.state.cr4 & s.CR4_PCIDE))
    if kind == 0:
        ok = ok and is_canonical(address, op.state)
    if not ok:
        raise Fault.general_protection()
    return op._replace(flushes_tlb=True)


def rdtscp(op: Operation) -> Operation:
    """TSC to EDX:EAX, TSC_AUX to ECX."""
    if op.state.cr4 & s.CR4_TSD and op.state.cpl:
        raise Fault.general_protection()
    clock = _clock(op.state)
    return op.set_edx_eax(clock.tsc).set_gpr(s.RCX, clock.tsc_aux & 0xFFFF_FFFF)


def rdpid(op: Operation) -> Operation:
    """TSC_AUX to a register."""
    return op.write(0, _clock(op.state).tsc_aux)


def _clock(state: State) -> s.Clock:
    return state.clock or s.Clock()


def read_base(op: Operation, segment: int) -> Operation:
    """RDFSBASE, RDGSBASE."""
    _check_fsgsbase(op)
    return op.write(0, op.state.segments[segment].base)


def write_base(op: Operation, segment: int) -> Operation:
    """WRFSBASE, WRGSBASE."""
    _check_fsgsbase(op)
    base = op.read(0)
    if not is_canonical(base, op.state):
        raise Fault.general_protection()
    segments = list(op.state.segments)
    segments[segment] = segments[segment]._replace(base=base)
    return op._replace(state=op.state._replace(segments=tuple(segments)))


def _check_fsgsbase(op: Operation) -> None:
    if not op.state.cr4 & s.CR4_FSGSBASE:
        raise Fault.undefined_opcode()


def rdpkru(op: Operation) -> Operation:
    """The rights of protection keys to EAX."""
    _check_pku(op)
    if op.gpr32(s.RCX):
        raise Fault.general_protection()
    component = op.xstate.components[x.PKRU]
    in_use = op.xstate.in_use >> x.PKRU & 1
    return op.set_edx_eax(op.xstate.number(component.offset, 4) if in_use else 0)


def wrpkru(op: Operation) -> Operation:
    """EAX to the rights of protection keys."""
    _check_pku(op)
    if op.gpr32(s.RCX) or op.gpr32(s.RDX):
        raise Fault.general_protection()
    offset = op.xstate.components[x.PKRU].offset
    return op.set_xstate(op.xstate.with_number(offset, 4, op.gpr32(s.RAX), x.PKRU))


def _check_pku(op: Operation) -> None:
    if not op.state.cr4 & s.CR4_PKE or x.PKRU not in op.xstate.components:
        raise Fault.undefined_opcode()


def sldt(op: Operation) -> Operation:
    """The LDT's selector."""
    return op.write(0, op.state.ldt.selector)


def store_task_register(op: Operation) -> Operation:
    """STR: the task register's selector."""
    return op.write(0, op.state.tr_selector)


def verr(op: Operation) -> Operation:
    """ZF: whether the segment of a selector can be read."""
    return _verify(op, _is_readable)


def verw(op: Operation) -> Operation:
    """ZF: whether the segment of a selector can be written.

    On processors that need it VERW also clears buffers; the kernels' reason to use it.
    """
    return _verify(op, _is_writable)


def _verify(op: Operation, has_right: Callable[[int], bool]) -> Operation:
    selector = op.read(0) & 0xFFFF
    high = _descriptor_high(op, selector)
    ok = high is not None and bool(high & _NOT_SYSTEM) and has_right(high)
    if ok and high is not None and high & (_CODE | _CONFORMING) != _CODE | _CONFORMING:
        ok = high >> _DPL_SHIFT & 3 >= max(op.state.cpl, selector & 3)
    return op.set_flags(s.ZF, s.ZF if ok else 0)


def _descriptor_high(op: Operation, selector: int) -> int | None:
    """The second half of the descriptor that ``selector`` names; None if it names none."""
    table = op.state.ldt if selector & 4 else op.state.gdt
    offset = selector & ~7
    if selector & ~3 == 0 or offset + 7 > table.limit:
        return None
    return int.from_bytes(op.read_system(table.base + offset + 4, 4), "little")


def _is_readable(high: int) -> bool:
    return not high & _CODE or bool(high & _WRITABLE_OR_READABLE)


def _is_writable(high: int) -> bool:
    return high & (_CODE | _WRITABLE_OR_READABLE) == _WRITABLE_OR_READABLE
