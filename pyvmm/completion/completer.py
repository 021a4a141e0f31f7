"""Completer: executes for a vCPU the instruction that KVM could not.

    fetch       the bytes that KVM gives, or by our own walk from RIP
    decode      iced-x86
    gather      registers from the vCPU; the memory operand's bytes, by our own walk
    execute     the table's function
    commit      memory, registers and what else has changed, all of it or nothing

An exception of the guest's, in gathering or executing, is injected instead of the commit, with
RIP still at the instruction. When KVM_RUN ended KVM had an #UD waiting, which it would deliver if
nothing were done: KVM_SET_REGS drops it (Linux, arch/x86/kvm/x86.c, __set_regs), and so is always
called, and before an exception of ours is set.

KVM keeps translations of its own of what the guest's page tables say. It is told to forget them
by KVM_SET_SREGS with a CR3 that differs, and back.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Protocol

from iced_x86 import (
    Decoder,
    DecoderError,
    Instruction,
    InstructionInfoFactory,
    MemorySizeExt,
    Mnemonic,
    OpAccess,
)

from kvm_bindings import KvmError, view
from pyvmm.completion import state as s
from pyvmm.completion.addressing import linear_address
from pyvmm.completion.operation import Operation
from pyvmm.completion.paging_walk import PAGE_BYTES, Access, Update, Walker
from pyvmm.completion.state import Fault, State, Unhandled
from pyvmm.completion.table import TABLE, Entry
from pyvmm.completion.xstate import SSE, X87, Component, XState

if TYPE_CHECKING:
    from collections.abc import Iterable

    from kvm_bindings import CpuidEntry
    from kvm_bindings.structs import (
        kvm_regs,
        kvm_segment,
        kvm_sregs,
        kvm_vcpu_events,
        kvm_xcrs,
        kvm_xsave,
    )
    from pyvmm.completion.syscall_cure import SyscallCure
    from pyvmm.memory import GuestMemory

_LONGEST_INSTRUCTION_BYTES = 15  # SDM 2A 2.3.11
_MAX_PHYS_BITS_DEFAULT = 36  # SDM 3A 4.1.4
_MSR_IA32_TSC, _MSR_IA32_XSS, _MSR_IA32_TSC_AUX = 0x10, 0xDA0, 0xC000_0103  # SDM 4 table 2-2
_CR3_PWT = 1 << 3

_GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)
_SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")
_MNEMONIC_NAMES = {
    number: name.lower() for name, number in vars(Mnemonic).items() if isinstance(number, int)
}

_WRITES = (OpAccess.WRITE, OpAccess.COND_WRITE, OpAccess.READ_WRITE, OpAccess.READ_COND_WRITE)

# Physical memory that holds parts of an operand: (gpa, size in bytes), in order.
_Pieces = list[tuple[int, int]]


class VcpuPort(Protocol):
    """What a Completer wants of a vCPU: a part of ``kvm_bindings.Vcpu``."""

    def get_regs(self) -> kvm_regs: ...
    def set_regs(self, regs: kvm_regs) -> None: ...
    def get_sregs(self) -> kvm_sregs: ...
    def set_sregs(self, sregs: kvm_sregs) -> None: ...
    def get_xsave(self) -> kvm_xsave: ...
    def get_xsave2(self, size_bytes: int) -> kvm_xsave: ...
    def set_xsave(self, xsave: kvm_xsave) -> None: ...
    def get_xcrs(self) -> kvm_xcrs: ...
    def set_xcrs(self, xcrs: kvm_xcrs) -> None: ...
    def get_vcpu_events(self) -> kvm_vcpu_events: ...
    def set_vcpu_events(self, events: kvm_vcpu_events) -> None: ...
    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]: ...
    def get_cpuid2(self) -> list[CpuidEntry]: ...


class Completer:
    """Completes instructions of one vCPU, whose memory is ``memory``.

    ``xsave_bytes``: the size of KVM's XSAVE area, from KVM_CAP_XSAVE2; 0 if KVM has not got that.
    ``syscall_cure``: where SYSCALL needs one.
    """

    def __init__(
        self,
        vcpu: VcpuPort,
        memory: GuestMemory,
        xsave_bytes: int,
        syscall_cure: SyscallCure | None = None,
    ) -> None:
        self.counts: Counter[str] = Counter()
        """How often each instruction was completed, by its mnemonic."""
        self._vcpu = vcpu
        self._memory = memory
        self._xsave_bytes = xsave_bytes
        self._syscall_cure = syscall_cure
        self._info = InstructionInfoFactory()
        self._components: dict[int, Component] = {}
        self._max_phys_bits = _MAX_PHYS_BITS_DEFAULT
        for leaf in vcpu.get_cpuid2():
            if leaf.function == 0xD and leaf.index >= 2 and leaf.eax:
                aligned = bool(leaf.ecx & 2)
                self._components[leaf.index] = Component(leaf.ebx, leaf.eax, aligned)
            elif leaf.function == 0x8000_0008:
                self._max_phys_bits = leaf.eax & 0xFF

    @property
    def debug_registers_are_taken(self) -> bool:
        """Whether the SYSCALL cure's breakpoint has taken the guest's debug registers from it."""
        return self._syscall_cure is not None and self._syscall_cure.is_armed

    def complete(self, fetched: bytes) -> None:
        """Execute the instruction at RIP, which begins with ``fetched``, and move on.

        Raises Unhandled, and has changed nothing, if that cannot be done here.
        """
        regs, sregs = self._vcpu.get_regs(), self._vcpu.get_sregs()
        state = _state(regs, sregs)
        if self._syscall_cure is not None:
            self._syscall_cure.watch(sregs.idt, partial(self._read_system, self._walker(state)))
        name = self._step(fetched, state, regs, sregs)
        if name is not None:
            self.counts[name] += 1

    def at_breakpoint(self) -> None:
        """Go on from the breakpoint that the SYSCALL cure has set. Raises Unhandled as above."""
        regs, sregs = self._vcpu.get_regs(), self._vcpu.get_sregs()
        state = _state(regs, sregs)
        read_system = partial(self._read_system, self._walker(state))
        if self._syscall_cure is not None and self._syscall_cure.mend(regs, sregs, read_system):
            self.counts["syscall"] += 1
        else:
            self._step(b"", state, regs, sregs)

    def disassemble(self, fetched: bytes) -> str:
        """The instruction at RIP as text, in the kernel's assembler's syntax."""
        state = _state(self._vcpu.get_regs(), self._vcpu.get_sregs())
        try:
            return f"{self._decode(state, fetched):gx}"
        except (Fault, Unhandled) as reason:
            return f"({reason})"

    def _step(self, fetched: bytes, state: State, regs: kvm_regs, sregs: kvm_sregs) -> str | None:
        """Execute one instruction; its name, or None if it raised an exception."""
        try:
            insn = self._decode(state, fetched)
            entry = TABLE.get(insn.mnemonic)
            if entry is None:
                raise Unhandled("it is not among the instructions that pyvmm knows")
            self._execute(entry, insn, state, regs, sregs)
        except Fault as fault:
            self._raise_in_guest(fault, regs, sregs)
            return None
        except KvmError as error:
            raise Unhandled(f"KVM did not take the state after it: {error}") from error
        return _MNEMONIC_NAMES[insn.mnemonic]

    # Fetching and decoding.

    def _decode(self, state: State, fetched: bytes) -> Instruction:
        """The instruction at RIP. What KVM fetched may end too early."""
        bits = 64 if state.is_64bit else 32 if state.segments[s.CS].db else 16
        decoder = Decoder(bits, fetched, ip=state.rip)
        insn = decoder.decode()
        if decoder.last_error == DecoderError.NO_MORE_BYTES:
            decoder = Decoder(bits, self._fetch(state), ip=state.rip)
            insn = decoder.decode()
        if not insn:
            raise Unhandled("the bytes are no instruction")
        return insn

    def _fetch(self, state: State) -> bytes:
        """The bytes at RIP, as far as they can be read; Fault if the first one cannot."""
        walker = self._walker(state)
        access = Access(fetch=True, user=state.cpl == 3)
        start = state.rip if state.is_64bit else state.segments[s.CS].base + state.rip
        to_page_end = PAGE_BYTES - start % PAGE_BYTES
        fetched = b""
        for at, size_bytes in ((start, to_page_end), (start + to_page_end, PAGE_BYTES)):
            size_bytes = min(size_bytes, _LONGEST_INSTRUCTION_BYTES - len(fetched))
            try:
                fetched += self._read([(walker.translate(at, access).gpa, size_bytes)])
            except (Fault, Unhandled):
                if not fetched:
                    raise
                break
        return fetched

    # Executing.

    def _execute(
        self, entry: Entry, insn: Instruction, state: State, regs: kvm_regs, sregs: kvm_sregs
    ) -> None:
        xsave = self._get_xsave() if entry.needs_xstate else None
        before = self._gather_state(entry, state, xsave)
        walker = self._walker(state)
        op = Operation(
            insn,
            before._replace(rip=insn.next_ip, rflags=state.rflags & ~s.RF),
            read_system=partial(self._read_system, walker),
        )
        if entry.requires is not None:
            entry.requires(op)
        op, pieces, updates = self._gather_memory(entry, op, walker)
        op = entry.run(op)
        self._commit(before, op, regs, sregs, xsave)
        for offset, data in op.writes:
            self._write(pieces, offset, data)
        for gpa, size_bytes, value in updates:
            self._memory.write(gpa, value.to_bytes(size_bytes, "little"))

    def _get_xsave(self) -> kvm_xsave:
        if self._xsave_bytes:
            return self._vcpu.get_xsave2(self._xsave_bytes)
        return self._vcpu.get_xsave()

    def _gather_state(self, entry: Entry, state: State, xsave: kvm_xsave | None) -> State:
        if xsave is not None:
            known = sum(1 << number for number in (X87, SSE, *self._components))
            xcr0 = self._vcpu.get_xcrs().xcrs[0].value & known
            xstate = XState(bytes(view(xsave)), self._components, xcr0)
            if entry.needs_xss:
                xss = self._vcpu.get_msrs([_MSR_IA32_XSS]).get(_MSR_IA32_XSS, 0)
                xstate = xstate._replace(xss=xss)
            state = state._replace(xstate=xstate)
        if entry.needs_clock:
            msrs = self._vcpu.get_msrs([_MSR_IA32_TSC, _MSR_IA32_TSC_AUX])
            clock = s.Clock(msrs.get(_MSR_IA32_TSC, 0), msrs.get(_MSR_IA32_TSC_AUX, 0))
            state = state._replace(clock=clock)
        return state

    def _gather_memory(
        self, entry: Entry, op: Operation, walker: Walker
    ) -> tuple[Operation, _Pieces, list[Update]]:
        """The operation with its memory operand; where that is; what to set in page tables."""
        used = self._info.info(op.insn).used_memory()
        if not used:
            return op, [], []
        operand = used[0]
        access = Access(write=operand.access in _WRITES, user=op.state.cpl == 3)
        size_bytes = MemorySizeExt.size(operand.memory_size)
        address = linear_address(operand, max(size_bytes, 1), op.state)
        if entry.aligned is not None and address % entry.aligned(op, size_bytes):
            raise Fault.general_protection()
        if entry.extent is not None:
            size_bytes = entry.extent(
                op,
                lambda offset, size: self._read(
                    self._translate(walker, address + offset, size, access)[0]
                ),
            )
            linear_address(operand, size_bytes, op.state)
        pieces, updates = self._translate(walker, address, size_bytes, access)
        return op._replace(memory=self._read(pieces)), pieces, updates

    def _commit(
        self,
        before: State,
        op: Operation,
        regs: kvm_regs,
        sregs: kvm_sregs,
        xsave: kvm_xsave | None,
    ) -> None:
        """Put the vCPU into ``op``'s state: first what KVM may refuse."""
        after = op.state
        if xsave is not None and after.xstate != before.xstate and after.xstate is not None:
            if before.xstate is not None and after.xstate.xcr0 != before.xstate.xcr0:
                xcrs = self._vcpu.get_xcrs()
                xcrs.xcrs[0].value = after.xstate.xcr0
                try:
                    self._vcpu.set_xcrs(xcrs)
                except KvmError:  # a component that this vCPU does not have
                    raise Fault.general_protection() from None
            view(xsave)[:] = after.xstate.area
            self._vcpu.set_xsave(xsave)
        if after.segments != before.segments:
            sregs.fs.base = after.segments[s.FS].base
            sregs.gs.base = after.segments[s.GS].base
            self._vcpu.set_sregs(sregs)
        if op.flushes_tlb:
            for _ in range(2):
                sregs.cr3 ^= _CR3_PWT
                self._vcpu.set_sregs(sregs)
        for name, old, new in zip(_GPR_NAMES, before.gpr, after.gpr, strict=True):
            if new != old:
                setattr(regs, name, new)
        regs.rip, regs.rflags = after.rip, after.rflags
        self._vcpu.set_regs(regs)
        if op.interrupt is not None:
            self._interrupt(op.interrupt)

    # Interrupts and exceptions.

    def _raise_in_guest(self, fault: Fault, regs: kvm_regs, sregs: kvm_sregs) -> None:
        if fault.cr2 is not None:
            sregs.cr2 = fault.cr2
            self._vcpu.set_sregs(sregs)
        self._vcpu.set_regs(regs)
        events = self._vcpu.get_vcpu_events()
        exception = events.exception
        exception.injected, exception.pending, exception.nr = 1, 0, fault.vector
        exception.has_error_code = fault.error_code is not None
        exception.error_code = fault.error_code or 0
        self._vcpu.set_vcpu_events(events)

    def _interrupt(self, vector: int) -> None:
        events = self._vcpu.get_vcpu_events()
        if vector < 32:
            exception = events.exception
            exception.injected, exception.pending, exception.nr = 1, 0, vector
            exception.has_error_code = 0
        else:
            # KVM takes no exception with such a number.
            events.interrupt.injected, events.interrupt.nr, events.interrupt.soft = 1, vector, 0
        self._vcpu.set_vcpu_events(events)

    # Memory.

    def _walker(self, state: State) -> Walker:
        return Walker(state, self._read_entry, self._max_phys_bits)

    def _read_entry(self, gpa: int, size_bytes: int) -> int:
        if not self._memory.contains(gpa, size_bytes):
            return (1 << 8 * size_bytes) - 1
        return int.from_bytes(self._memory.view(gpa, size_bytes), "little")

    def _translate(
        self, walker: Walker, gva: int, size_bytes: int, access: Access
    ) -> tuple[_Pieces, list[Update]]:
        """Where an operand is, page by page. Raises Fault (#PF) for the first that is not there."""
        pieces: _Pieces = []
        updates: list[Update] = []
        end = gva + size_bytes
        while gva < end:
            part_bytes = min(end - gva, PAGE_BYTES - gva % PAGE_BYTES)
            gpa, page_updates = walker.translate(gva, access)
            if not self._memory.contains(gpa, part_bytes):
                raise Unhandled(f"its operand, at guest address {gpa:#x}, is not RAM")
            pieces.append((gpa, part_bytes))
            updates += page_updates
            gva += part_bytes
        return pieces, updates

    def _read(self, pieces: _Pieces) -> bytes:
        parts = []
        for gpa, size_bytes in pieces:
            if not self._memory.contains(gpa, size_bytes):
                raise Unhandled(f"guest address {gpa:#x} is not RAM")
            parts.append(self._memory.read(gpa, size_bytes))
        return b"".join(parts)

    def _read_system(self, walker: Walker, gva: int, size_bytes: int) -> bytes:
        """Memory as the processor reads its own tables, and pushes its frames."""
        return self._read(self._translate(walker, gva, size_bytes, Access(implicit=True))[0])

    def _write(self, pieces: _Pieces, offset: int, data: bytes) -> None:
        """``data`` to ``offset`` of the operand that ``pieces`` are."""
        for gpa, size_bytes in pieces:
            if offset < size_bytes and data:
                part = data[: size_bytes - offset]
                self._memory.write(gpa + offset, part)
                data = data[len(part) :]
                offset += len(part)
            offset -= size_bytes


def _state(regs: kvm_regs, sregs: kvm_sregs) -> State:
    segments = tuple(_segment(getattr(sregs, name)) for name in _SEGMENT_NAMES)
    return State(
        gpr=tuple(getattr(regs, name) for name in _GPR_NAMES),
        rip=regs.rip,
        rflags=regs.rflags,
        cr0=sregs.cr0,
        cr3=sregs.cr3,
        cr4=sregs.cr4,
        efer=sregs.efer,
        cpl=sregs.ss.dpl if sregs.cr0 & s.CR0_PE else 0,
        is_64bit=bool(sregs.efer & s.EFER_LMA and sregs.cs.l),
        segments=segments,
        gdt=s.DescriptorTable(sregs.gdt.base, sregs.gdt.limit),
        ldt=s.DescriptorTable(sregs.ldt.base, sregs.ldt.limit, sregs.ldt.selector),
        tr_selector=sregs.tr.selector,
    )


def _segment(segment: kvm_segment) -> s.Segment:
    return s.Segment(segment.selector, segment.base, segment.limit, segment.type, segment.db)
