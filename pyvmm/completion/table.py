"""Which function executes which instruction, and what must hold before.

Keyed by the decoder's mnemonic, so a legacy form and its VEX form are two entries. An entry says
besides the function:

    requires    the check that comes first: #UD or #NM if the operating system has not enabled it
    aligned     how a memory operand must be aligned, else #GP
    needs       state that is dear to read, and is read for this instruction only
    extent      the size of a memory operand, where it is the processor's state that decides it
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from iced_x86 import Mnemonic as M  # noqa: N817 - it is written two hundred times below
from iced_x86 import Mnemonic_

from pyvmm.completion import bmi, integer, system, vector, x87, xsave
from pyvmm.completion import state as s
from pyvmm.completion import xstate as x
from pyvmm.completion.operation import Operation
from pyvmm.completion.state import Fault
from pyvmm.completion.xsave import Peek

Run = Callable[[Operation], Operation]


class Entry(NamedTuple):
    """How to execute one instruction."""

    run: Run
    requires: Callable[[Operation], None] | None = None
    aligned: Callable[[Operation, int], int] | None = None
    """(operation, size of the memory operand) -> the alignment that it must have."""
    needs_xstate: bool = False
    needs_xss: bool = False
    needs_clock: bool = False
    extent: Callable[[Operation, Peek], int] | None = None


# What must hold before. SDM 3A table 2-2 for CR0 and CR4; 2A 2.4 for the classes of exceptions.


def _privileged(op: Operation) -> None:
    if op.state.cpl:
        raise Fault.general_protection()


def _supervisor_only(op: Operation) -> None:
    if op.state.cpl:
        raise Fault.undefined_opcode()


def _protected(op: Operation) -> None:
    if not op.state.cr0 & s.CR0_PE:
        raise Fault.undefined_opcode()


def _umip(op: Operation) -> None:
    _protected(op)
    if op.state.cr4 & s.CR4_UMIP:
        _privileged(op)


def _check_task_switched(op: Operation) -> None:
    if op.state.cr0 & s.CR0_TS:
        raise Fault(s.NM)


def _sse(op: Operation) -> None:
    if op.state.cr0 & s.CR0_EM or not op.state.cr4 & s.CR4_OSFXSR:
        raise Fault.undefined_opcode()
    _check_task_switched(op)


def _enabled(*components: int) -> Callable[[Operation], None]:
    """VEX and EVEX: these bits of XCR0."""
    wanted = sum(1 << component for component in components)

    def check(op: Operation) -> None:
        if not op.state.cr4 & s.CR4_OSXSAVE or op.xstate.xcr0 & wanted != wanted:
            raise Fault.undefined_opcode()
        _check_task_switched(op)

    return check


_avx = _enabled(x.SSE, x.AVX)
_avx512 = _enabled(x.SSE, x.AVX, x.OPMASK, x.ZMM_HI256, x.HI16_ZMM)


def _evex_without_mask(op: Operation) -> None:
    _avx512(op)
    if op.insn.has_op_mask or op.insn.is_broadcast:
        raise s.Unhandled("an EVEX instruction with a mask or a broadcast")


def _x87(op: Operation) -> None:
    if op.state.cr0 & (s.CR0_EM | s.CR0_TS):
        raise Fault(s.NM)


def _x87_with_operand(op: Operation) -> None:
    """A pending exception comes before a page fault of the operand."""
    _x87(op)
    x87.check_pending(op)


def _mmx(op: Operation) -> None:
    if op.state.cr0 & s.CR0_EM:
        raise Fault.undefined_opcode()
    _check_task_switched(op)


def _wait(op: Operation) -> None:
    if op.state.cr0 & s.CR0_MP:
        _check_task_switched(op)


def _osxsave(op: Operation) -> None:
    if not op.state.cr4 & s.CR4_OSXSAVE:
        raise Fault.undefined_opcode()


def _xsave(op: Operation) -> None:
    _osxsave(op)
    _check_task_switched(op)


def _supervisor_xsave(op: Operation) -> None:
    _xsave(op)
    _privileged(op)


def _xsetbv(op: Operation) -> None:
    _osxsave(op)
    _privileged(op)


# How a memory operand must be aligned.


def _naturally(_op: Operation, size_bytes: int) -> int:
    return size_bytes


def _to_16_if_legacy(op: Operation, size_bytes: int) -> int:
    return 16 if op.is_legacy and size_bytes == 16 else 1


def _to_64(_op: Operation, _size_bytes: int) -> int:
    return 64


# The table.

_integer: dict[Mnemonic_, Run] = {
    M.POPCNT: integer.popcnt,
    M.LZCNT: integer.lzcnt,
    M.TZCNT: integer.tzcnt,
    M.MOVBE: integer.movbe,
    M.BSWAP: integer.bswap,
    M.CRC32: integer.crc32,
    M.ADCX: integer.adcx,
    M.ADOX: integer.adox,
    M.MOVNTI: integer.mov,
    M.CMPXCHG8B: integer.cmpxchg8b,
    M.CLD: integer.cld,
    M.UD0: integer.undefined,
    M.UD1: integer.undefined,
    M.INT: integer.int_n,
    M.INT3: integer.int3,
    M.ANDN: bmi.andn,
    M.BEXTR: bmi.bextr,
    M.BLSI: bmi.blsi,
    M.BLSMSK: bmi.blsmsk,
    M.BLSR: bmi.blsr,
    M.BZHI: bmi.bzhi,
    M.MULX: bmi.mulx,
    M.PDEP: bmi.pdep,
    M.PEXT: bmi.pext,
    M.RORX: bmi.rorx,
    M.SARX: bmi.sarx,
    M.SHLX: bmi.shlx,
    M.SHRX: bmi.shrx,
    M.RDFSBASE: partial(system.read_base, segment=s.FS),
    M.RDGSBASE: partial(system.read_base, segment=s.GS),
    M.WRFSBASE: partial(system.write_base, segment=s.FS),
    M.WRGSBASE: partial(system.write_base, segment=s.GS),
}

_nothing = (
    *(M.LFENCE, M.MFENCE, M.SFENCE, M.SERIALIZE, M.CLFLUSH, M.CLFLUSHOPT, M.CLWB),
    *(M.NOP, M.ENDBR64, M.ENDBR32),
    *(M.PREFETCHT0, M.PREFETCHT1, M.PREFETCHT2, M.PREFETCHNTA, M.PREFETCH, M.PREFETCHW),
)

# A legacy form and its VEX form, which do the same but for what ``Operation.is_legacy`` says.
_vectors: dict[tuple[Mnemonic_, Mnemonic_], Run] = {
    (M.PAND, M.VPAND): vector.bitwise(operator.and_),
    (M.POR, M.VPOR): vector.bitwise(operator.or_),
    (M.PXOR, M.VPXOR): vector.bitwise(operator.xor),
    (M.PANDN, M.VPANDN): vector.bitwise(vector.and_not),
    (M.ANDPS, M.VANDPS): vector.bitwise(operator.and_),
    (M.ANDPD, M.VANDPD): vector.bitwise(operator.and_),
    (M.ORPS, M.VORPS): vector.bitwise(operator.or_),
    (M.ORPD, M.VORPD): vector.bitwise(operator.or_),
    (M.XORPS, M.VXORPS): vector.bitwise(operator.xor),
    (M.XORPD, M.VXORPD): vector.bitwise(operator.xor),
    (M.ANDNPS, M.VANDNPS): vector.bitwise(vector.and_not),
    (M.ANDNPD, M.VANDNPD): vector.bitwise(vector.and_not),
    (M.PADDB, M.VPADDB): vector.elementwise(1, vector.add),
    (M.PADDW, M.VPADDW): vector.elementwise(2, vector.add),
    (M.PADDD, M.VPADDD): vector.elementwise(4, vector.add),
    (M.PADDQ, M.VPADDQ): vector.elementwise(8, vector.add),
    (M.PSUBB, M.VPSUBB): vector.elementwise(1, vector.subtract),
    (M.PSUBW, M.VPSUBW): vector.elementwise(2, vector.subtract),
    (M.PSUBD, M.VPSUBD): vector.elementwise(4, vector.subtract),
    (M.PSUBQ, M.VPSUBQ): vector.elementwise(8, vector.subtract),
    (M.PCMPEQB, M.VPCMPEQB): vector.elementwise(1, vector.equal),
    (M.PCMPEQW, M.VPCMPEQW): vector.elementwise(2, vector.equal),
    (M.PCMPEQD, M.VPCMPEQD): vector.elementwise(4, vector.equal),
    (M.PUNPCKLBW, M.VPUNPCKLBW): vector.unpack(1, high=False),
    (M.PUNPCKLWD, M.VPUNPCKLWD): vector.unpack(2, high=False),
    (M.PUNPCKLDQ, M.VPUNPCKLDQ): vector.unpack(4, high=False),
    (M.PUNPCKLQDQ, M.VPUNPCKLQDQ): vector.unpack(8, high=False),
    (M.PUNPCKHBW, M.VPUNPCKHBW): vector.unpack(1, high=True),
    (M.PUNPCKHWD, M.VPUNPCKHWD): vector.unpack(2, high=True),
    (M.PUNPCKHDQ, M.VPUNPCKHDQ): vector.unpack(4, high=True),
    (M.PUNPCKHQDQ, M.VPUNPCKHQDQ): vector.unpack(8, high=True),
    (M.PSHUFB, M.VPSHUFB): vector.pshufb,
    (M.PSHUFD, M.VPSHUFD): vector.pshufd,
    (M.PALIGNR, M.VPALIGNR): vector.palignr,
    (M.PSLLW, M.VPSLLW): vector.shift_left(2),
    (M.PSLLD, M.VPSLLD): vector.shift_left(4),
    (M.PSLLQ, M.VPSLLQ): vector.shift_left(8),
    (M.PSRLW, M.VPSRLW): vector.shift_right(2),
    (M.PSRLD, M.VPSRLD): vector.shift_right(4),
    (M.PSRLQ, M.VPSRLQ): vector.shift_right(8),
    (M.PSRAW, M.VPSRAW): vector.shift_right(2, signed=True),
    (M.PSRAD, M.VPSRAD): vector.shift_right(4, signed=True),
    (M.PSLLDQ, M.VPSLLDQ): partial(vector.shift_bytes, left=True),
    (M.PSRLDQ, M.VPSRLDQ): partial(vector.shift_bytes, left=False),
}

_aligned_moves = {
    M.MOVDQA: M.VMOVDQA,
    M.MOVAPS: M.VMOVAPS,
    M.MOVAPD: M.VMOVAPD,
    M.MOVNTDQ: M.VMOVNTDQ,
    M.MOVNTPS: M.VMOVNTPS,
    M.MOVNTPD: M.VMOVNTPD,
    M.MOVNTDQA: M.VMOVNTDQA,
}

_unaligned_moves = {
    M.MOVDQU: M.VMOVDQU,
    M.MOVUPS: M.VMOVUPS,
    M.MOVUPD: M.VMOVUPD,
    M.LDDQU: M.VLDDQU,
    M.MOVD: M.VMOVD,
}


def _build() -> dict[Mnemonic_, Entry]:
    table = {mnemonic: Entry(run) for mnemonic, run in _integer.items()}
    table |= {mnemonic: Entry(integer.nothing) for mnemonic in _nothing}
    for (legacy, vex), run in _vectors.items():
        table[legacy] = Entry(run, _sse, _to_16_if_legacy, needs_xstate=True)
        table[vex] = Entry(run, _avx, needs_xstate=True)
    for legacy, vex in _aligned_moves.items():
        table[legacy] = Entry(integer.mov, _sse, _naturally, needs_xstate=True)
        table[vex] = Entry(integer.mov, _avx, _naturally, needs_xstate=True)
    for legacy, vex in _unaligned_moves.items():
        table[legacy] = Entry(integer.mov, _sse, needs_xstate=True)
        table[vex] = Entry(integer.mov, _avx, needs_xstate=True)
    with_xstate = partial(Entry, needs_xstate=True)
    area = partial(with_xstate, aligned=_to_64)
    table |= {
        M.CMPXCHG16B: Entry(integer.cmpxchg16b, aligned=_naturally),
        M.STAC: Entry(system.stac, _supervisor_only),
        M.CLAC: Entry(system.clac, _supervisor_only),
        M.SLDT: Entry(system.sldt, _umip),
        M.STR: Entry(system.store_task_register, _umip),
        M.VERR: Entry(system.verr, _protected),
        M.VERW: Entry(system.verw, _protected),
        M.INVPCID: Entry(system.invpcid, _privileged),
        M.RDTSCP: Entry(system.rdtscp, needs_clock=True),
        M.RDPID: Entry(system.rdpid, needs_clock=True),
        M.RDPKRU: with_xstate(system.rdpkru),
        M.WRPKRU: with_xstate(system.wrpkru),
        M.MOVQ: with_xstate(vector.movq, _sse),
        M.VMOVQ: with_xstate(vector.movq, _avx),
        M.VEXTRACTI128: with_xstate(vector.vextracti128, _avx),
        M.VINSERTI128: with_xstate(vector.vinserti128, _avx),
        M.VZEROUPPER: with_xstate(partial(vector.vzero, kept_bytes=16), _avx),
        M.VZEROALL: with_xstate(partial(vector.vzero, kept_bytes=0), _avx),
        M.VPROLD: with_xstate(partial(vector.rotate_dwords, left=True), _evex_without_mask),
        M.VPRORD: with_xstate(partial(vector.rotate_dwords, left=False), _evex_without_mask),
        M.VPERMI2D: with_xstate(vector.vpermi2d, _evex_without_mask),
        M.LDMXCSR: with_xstate(x87.ldmxcsr, _sse),
        M.STMXCSR: with_xstate(x87.stmxcsr, _sse),
        M.VLDMXCSR: with_xstate(x87.ldmxcsr, _avx),
        M.VSTMXCSR: with_xstate(x87.stmxcsr, _avx),
        M.WAIT: with_xstate(x87.fwait, _wait),
        M.FNCLEX: with_xstate(x87.fnclex, _x87),
        M.EMMS: with_xstate(x87.emms, _mmx),
        M.FILD: with_xstate(x87.fild, _x87_with_operand),
        M.XGETBV: with_xstate(xsave.xgetbv, _osxsave),
        M.XSETBV: with_xstate(xsave.xsetbv, _xsetbv),
    }
    supervisor = partial(area, requires=_supervisor_xsave, needs_xss=True)
    by_format = {
        (M.XSAVE, M.XSAVE64): area(xsave.xsave, _xsave, extent=xsave.save_extent),
        (M.XSAVEOPT, M.XSAVEOPT64): area(xsave.xsaveopt, _xsave, extent=xsave.save_extent),
        (M.XSAVEC, M.XSAVEC64): area(xsave.xsavec, _xsave, extent=xsave.save_compacted_extent),
        (M.XRSTOR, M.XRSTOR64): area(xsave.xrstor, _xsave, extent=xsave.restore_extent),
        (M.XSAVES, M.XSAVES64): supervisor(xsave.xsavec, extent=xsave.save_compacted_extent),
        (M.XRSTORS, M.XRSTORS64): supervisor(xsave.xrstors, extent=xsave.restore_extent),
    }
    table |= {mnemonic: entry for both, entry in by_format.items() for mnemonic in both}
    return table


TABLE = _build()
