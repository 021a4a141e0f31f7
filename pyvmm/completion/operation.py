"""Operation: an instruction with what it works on; executing it gives another Operation.

Operands are numbered as the decoder does it, in the manuals' order, destination first. ``read``
and ``write`` take general registers, vector registers, the memory operand and immediates alike:

    def popcnt(op: Operation) -> Operation:
        source = op.read(1)
        return op.write(0, source.bit_count()).set_flags(STATUS_FLAGS, 0 if source else ZF)

Values are unsigned ints of the operand's size; a vector is one such int, its first element lowest.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from iced_x86 import (
    EncodingKind,
    Instruction,
    MemorySizeExt,
    OpKind,
    Register,
    Register_,
    RegisterExt,
)

from pyvmm.completion import state as s
from pyvmm.completion import xstate as x
from pyvmm.completion.state import State, Unhandled

Write = tuple[int, bytes]
"""Into the memory operand: offset, bytes."""


class Operation(NamedTuple):
    """One instruction: before it is executed, or after."""

    insn: Instruction
    state: State
    """RIP is that of the next instruction already."""
    memory: bytes = b""
    """The memory operand's bytes, if it has one that is read."""
    writes: tuple[Write, ...] = ()
    interrupt: int | None = None
    """The vector of the software interrupt that is to follow."""
    flushes_tlb: bool = False
    read_system: Callable[[int, int], bytes] = lambda gva, size_bytes: bytes(size_bytes)
    """Memory at a linear address, read as the processor reads descriptor tables."""

    # Operands.

    def is_memory(self, number: int) -> bool:
        """Whether operand ``number`` is the memory operand."""
        return self.insn.op_kind(number) == OpKind.MEMORY

    def size_bytes(self, number: int) -> int:
        """The size of operand ``number``, a register or memory."""
        if self.is_memory(number):
            return MemorySizeExt.size(self.insn.memory_size)
        return RegisterExt.size(self.insn.op_register(number))

    def read(self, number: int) -> int:
        """The value of operand ``number``."""
        kind = self.insn.op_kind(number)
        if kind == OpKind.MEMORY:
            return int.from_bytes(self.memory, "little")
        if kind != OpKind.REGISTER:
            return self.insn.immediate(number)
        register = self.insn.op_register(number)
        if RegisterExt.is_vector_register(register):
            return x.vector(self.xstate, RegisterExt.number(register), RegisterExt.size(register))
        return gpr_value(self.state, register)

    def write(self, number: int, value: int) -> Operation:
        """Operand ``number`` is now ``value``, which is cut to its size.

        A 32-bit general register's upper half becomes zero; so does, by a VEX or EVEX instruction,
        all of a vector register above the operand.
        """
        size_bytes = self.size_bytes(number)
        value &= (1 << 8 * size_bytes) - 1
        if self.is_memory(number):
            return self._replace(writes=(*self.writes, (0, value.to_bytes(size_bytes, "little"))))
        register = self.insn.op_register(number)
        if RegisterExt.is_vector_register(register):
            return self.set_xstate(
                x.with_vector(
                    self.xstate,
                    RegisterExt.number(register),
                    value,
                    size_bytes,
                    zero_above=not self.is_legacy,
                )
            )
        return self._replace(state=_with_gpr(self.state, register, value))

    @property
    def is_legacy(self) -> bool:
        """Not VEX or EVEX: a vector instruction then has its destination as its first source."""
        return self.insn.encoding == EncodingKind.LEGACY

    # Registers that an instruction uses without naming them.

    def gpr32(self, number: int) -> int:
        """The low half of general register ``number`` (state.RAX ...)."""
        return self.state.gpr[number] & 0xFFFF_FFFF

    def set_gpr(self, number: int, value: int) -> Operation:
        """General register ``number`` is now ``value``, all 64 bits of it."""
        gpr = list(self.state.gpr)
        gpr[number] = value
        return self._replace(state=self.state._replace(gpr=tuple(gpr)))

    def set_edx_eax(self, value: int) -> Operation:
        """EDX:EAX is now ``value``; the upper halves of RDX and RAX become zero."""
        low, high = value & 0xFFFF_FFFF, value >> 32 & 0xFFFF_FFFF
        return self.set_gpr(s.RAX, low).set_gpr(s.RDX, high)

    def set_flags(self, changed: int, flags: int) -> Operation:
        """Of RFLAGS the bits ``changed`` are now as in ``flags``."""
        rflags = self.state.rflags & ~changed | flags & changed
        return self._replace(state=self.state._replace(rflags=rflags))

    @property
    def xstate(self) -> x.XState:
        """The x87 and vector state, which the table must have asked for."""
        if self.state.xstate is None:
            raise Unhandled("a vector or MMX register where none was expected")
        return self.state.xstate

    def set_xstate(self, xstate: x.XState) -> Operation:
        """The x87 and vector state is now ``xstate``."""
        return self._replace(state=self.state._replace(xstate=xstate))


def gpr_value(state: State, register: Register_) -> int:
    """The value of a general register of any size."""
    number, shift, mask = _part(register)
    return state.gpr[number] >> shift & mask


def _with_gpr(state: State, register: Register_, value: int) -> State:
    number, shift, mask = _part(register)
    kept = 0 if mask == 0xFFFF_FFFF else state.gpr[number] & ~(mask << shift)
    gpr = list(state.gpr)
    gpr[number] = kept | value << shift
    return state._replace(gpr=tuple(gpr))


def _part(register: Register_) -> tuple[int, int, int]:
    """Which part of which general register ``register`` is: number, shift, mask."""
    if not RegisterExt.is_gpr(register):
        raise Unhandled("a register of a kind that is not handled here")
    if Register.AH <= register <= Register.BH:
        return register - Register.AH, 8, 0xFF
    number = RegisterExt.number(register)
    if register >= Register.SPL and RegisterExt.size(register) == 1:
        number = RegisterExt.number(RegisterExt.full_register(register))
    return number, 0, (1 << 8 * RegisterExt.size(register)) - 1
