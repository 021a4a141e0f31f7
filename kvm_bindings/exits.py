"""Every way in which an x86 vCPU stops for userspace: one dataclass each, payload included.

    match vcpu.decode():
        case IoOut(port=0x3F8, data=data):
            ...
        case Hlt():
            ...

Each is named after its KVM_EXIT_* constant; Io, Mmio and Hyperv are split by direction or type, so
that a field is there only if it means something. They are copies: the run page may change. Answers
go back through ``Vcpu.complete_io_in`` and its like, before the next run. A run loop in a hurry
reads the run page itself; this is for everything else.

Left out: TDX guests, whose exits come as Unknown. Kernel reference: "The kvm_run structure" in
Documentation/virt/kvm/api.rst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvm_bindings._abi import ffi, lib
from kvm_bindings.exit_reason import ExitReason

if TYPE_CHECKING:
    from collections.abc import Callable

    from kvm_bindings.structs import kvm_run
    from kvm_bindings.vcpu import Vcpu


@dataclass(slots=True)
class Unknown:
    """KVM_EXIT_UNKNOWN (the hardware left the guest for a reason that KVM does not know), or an
    exit that is not known here; then ``hardware_exit_reason`` is None."""

    reason: int
    hardware_exit_reason: int | None


@dataclass(slots=True)
class ExceptionExit:
    """KVM_EXIT_EXCEPTION: an exception that KVM does not handle."""

    exception: int
    error_code: int


@dataclass(slots=True)
class IoIn:
    """KVM_EXIT_IO, in: ``count`` reads of ``size`` bytes from ``port``; wants complete_io_in.

    ``count`` is above 1 for a string instruction (``rep insb``).
    """

    port: int
    size: int
    count: int


@dataclass(slots=True)
class IoOut:
    """KVM_EXIT_IO, out: ``count`` writes of ``size`` bytes to ``port``; ``data`` is all of them."""

    port: int
    size: int
    count: int
    data: bytes


@dataclass(slots=True)
class Hypercall:
    """KVM_EXIT_HYPERCALL: one that KVM passes on (Cap.EXIT_HYPERCALL); wants complete_hypercall."""

    nr: int
    args: tuple[int, ...]
    longmode: bool


@dataclass(slots=True)
class Debug:
    """KVM_EXIT_DEBUG: a breakpoint or single step of ``set_guest_debug``.

    ``exception``: 1 (#DB) or 3 (#BP). ``dr6``: SDM 3B 18.2.3.
    """

    exception: int
    pc: int
    dr6: int
    dr7: int


@dataclass(slots=True)
class Hlt:
    """KVM_EXIT_HLT: only without the in-kernel irqchip, which waits itself."""


@dataclass(slots=True)
class MmioRead:
    """KVM_EXIT_MMIO, read: ``len`` bytes at a guest address with no memory; wants
    complete_mmio_read."""

    phys_addr: int
    len: int


@dataclass(slots=True)
class MmioWrite:
    """KVM_EXIT_MMIO, write: ``data`` (1 to 8 bytes) to a guest address with no memory."""

    phys_addr: int
    data: bytes


@dataclass(slots=True)
class IrqWindowOpen:
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take an interrupt; asked for by
    ``run_page.request_interrupt_window``."""


@dataclass(slots=True)
class Shutdown:
    """KVM_EXIT_SHUTDOWN: a triple fault, which resets a real machine."""


@dataclass(slots=True)
class FailEntry:
    """KVM_EXIT_FAIL_ENTRY: the hardware refused the guest's state, on host CPU ``cpu``."""

    hardware_entry_failure_reason: int
    cpu: int


@dataclass(slots=True)
class Intr:
    """KVM_EXIT_INTR: a signal, a kick, or ``immediate_exit``."""


@dataclass(slots=True)
class SetTpr:
    """KVM_EXIT_SET_TPR: the guest lowered CR8 to ``cr8``; without the in-kernel irqchip."""

    cr8: int


@dataclass(slots=True)
class TprAccess:
    """KVM_EXIT_TPR_ACCESS: the instruction at ``rip`` accessed the task priority register."""

    rip: int
    is_write: bool


@dataclass(slots=True)
class Nmi:
    """KVM_EXIT_NMI."""


@dataclass(slots=True)
class InternalError:
    """KVM_EXIT_INTERNAL_ERROR: KVM cannot go on.

    ``suberror``: KVM_INTERNAL_ERROR_EMULATION and others. ``data``: what KVM tells, 64 bits each.
    ``insn_bytes``: of an emulation failure, the bytes at rip that KVM had fetched, up to 15 and
    often more than the instruction; empty if KVM does not tell.
    """

    suberror: int
    data: tuple[int, ...]
    insn_bytes: bytes

    @property
    def is_emulation_failure(self) -> bool:
        """Whether KVM met an instruction that it cannot emulate."""
        return self.suberror == lib.KVM_INTERNAL_ERROR_EMULATION


@dataclass(slots=True)
class SystemEvent:
    """KVM_EXIT_SYSTEM_EVENT: KVM_SYSTEM_EVENT_SHUTDOWN, _RESET, _CRASH, ... and its data."""

    type: int
    data: tuple[int, ...]


@dataclass(slots=True)
class IoapicEoi:
    """KVM_EXIT_IOAPIC_EOI: for an IOAPIC in userspace (Cap.SPLIT_IRQCHIP)."""

    vector: int


@dataclass(slots=True)
class HypervSynic:
    """KVM_EXIT_HYPERV, SYNIC: the guest changed its synthetic interrupt controller."""

    msr: int
    control: int
    evt_page: int
    msg_page: int


@dataclass(slots=True)
class HypervHcall:
    """KVM_EXIT_HYPERV, HCALL: the answer goes to ``run_page.hyperv.u.hcall.result``."""

    input: int
    params: tuple[int, ...]


@dataclass(slots=True)
class HypervSyndbg:
    """KVM_EXIT_HYPERV, SYNDBG: the answer goes to ``run_page.hyperv.u.syndbg.status``."""

    msr: int
    control: int
    status: int
    send_page: int
    recv_page: int
    pending_page: int


@dataclass(slots=True)
class X86Rdmsr:
    """KVM_EXIT_X86_RDMSR: ``reason`` is one of KVM_MSR_EXIT_REASON_*; wants complete_rdmsr."""

    index: int
    reason: int


@dataclass(slots=True)
class X86Wrmsr:
    """KVM_EXIT_X86_WRMSR: likewise; wants complete_wrmsr."""

    index: int
    data: int
    reason: int


@dataclass(slots=True)
class DirtyRingFull:
    """KVM_EXIT_DIRTY_RING_FULL: collect and reset the dirty ring."""


@dataclass(slots=True)
class ApResetHold:
    """KVM_EXIT_AP_RESET_HOLD: an SEV-ES vCPU waits for its start-up."""


@dataclass(slots=True)
class X86BusLock:
    """KVM_EXIT_X86_BUS_LOCK: the guest locked the bus (Cap.X86_BUS_LOCK_EXIT)."""


@dataclass(slots=True)
class XenHcall:
    """KVM_EXIT_XEN: a Xen hypercall; the answer goes to ``run_page.xen.u.hcall.result``."""

    longmode: bool
    cpl: int
    input: int
    params: tuple[int, ...]


@dataclass(slots=True)
class Notify:
    """KVM_EXIT_NOTIFY: the guest kept the CPU from opening an event window for too long."""

    flags: int


@dataclass(slots=True)
class MemoryFault:
    """KVM_EXIT_MEMORY_FAULT: guest memory that KVM could not reach (Cap.MEMORY_FAULT_INFO)."""

    flags: int
    gpa: int
    size: int


VcpuExit = (
    Unknown
    | ExceptionExit
    | IoIn
    | IoOut
    | Hypercall
    | Debug
    | Hlt
    | MmioRead
    | MmioWrite
    | IrqWindowOpen
    | Shutdown
    | FailEntry
    | Intr
    | SetTpr
    | TprAccess
    | Nmi
    | InternalError
    | SystemEvent
    | IoapicEoi
    | HypervSynic
    | HypervHcall
    | HypervSyndbg
    | X86Rdmsr
    | X86Wrmsr
    | DirtyRingFull
    | ApResetHold
    | X86BusLock
    | XenHcall
    | Notify
    | MemoryFault
)


def decode(vcpu: Vcpu) -> VcpuExit:
    """The exit that the run page of ``vcpu`` describes."""
    return decode_page(vcpu.run_page, vcpu.buffer)


def decode_page(run: kvm_run, buffer: memoryview) -> VcpuExit:
    """The exit that ``run`` describes; ``buffer`` is its bytes and those after them."""
    reason = run.exit_reason
    if reason == ExitReason.IO:
        io = run.io
        if io.direction == lib.KVM_EXIT_IO_IN:
            return IoIn(io.port, io.size, io.count)
        data = buffer[io.data_offset : io.data_offset + io.size * io.count]
        return IoOut(io.port, io.size, io.count, bytes(data))
    decoder = _DECODERS.get(reason)
    return Unknown(reason, None) if decoder is None else decoder(run)


def _mmio(run: kvm_run) -> VcpuExit:
    mmio = run.mmio
    if mmio.is_write:
        return MmioWrite(mmio.phys_addr, bytes(mmio.data[0 : min(mmio.len, len(mmio.data))]))
    return MmioRead(mmio.phys_addr, mmio.len)


def _debug(run: kvm_run) -> VcpuExit:
    arch = run.debug.arch
    return Debug(arch.exception, arch.pc, arch.dr6, arch.dr7)


def _internal_error(run: kvm_run) -> VcpuExit:
    internal = run.internal
    data = tuple(internal.data[0 : min(internal.ndata, len(internal.data))])
    insn_bytes = b""
    failure = run.emulation_failure
    if (
        internal.suberror == lib.KVM_INTERNAL_ERROR_EMULATION
        and data
        and failure.flags & lib.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    ):
        size = min(failure.insn_size, len(failure.insn_bytes))
        insn_bytes = bytes(failure.insn_bytes[0:size])
    return InternalError(internal.suberror, data, insn_bytes)


def _system_event(run: kvm_run) -> VcpuExit:
    event = run.system_event
    return SystemEvent(event.type, tuple(event.data[0 : min(event.ndata, len(event.data))]))


def _hyperv(run: kvm_run) -> VcpuExit:
    kind, u = run.hyperv.type, run.hyperv.u
    if kind == lib.KVM_EXIT_HYPERV_SYNIC:
        synic = u.synic
        return HypervSynic(synic.msr, synic.control, synic.evt_page, synic.msg_page)
    if kind == lib.KVM_EXIT_HYPERV_HCALL:
        return HypervHcall(u.hcall.input, tuple(u.hcall.params))
    if kind == lib.KVM_EXIT_HYPERV_SYNDBG:
        d = u.syndbg
        return HypervSyndbg(d.msr, d.control, d.status, d.send_page, d.recv_page, d.pending_page)
    return Unknown(ExitReason.HYPERV, None)


def _xen(run: kvm_run) -> VcpuExit:
    if run.xen.type != lib.KVM_EXIT_XEN_HCALL:
        return Unknown(ExitReason.XEN, None)
    hcall = run.xen.u.hcall
    return XenHcall(hcall.longmode != 0, hcall.cpl, hcall.input, tuple(hcall.params))


def _memory_fault(run: kvm_run) -> VcpuExit:
    # The member of the union that headers before Linux 6.8 lack; all members start at one place.
    fault = ffi.cast("struct kvm_memory_fault_exit *", ffi.addressof(run.hw))
    return MemoryFault(fault.flags, fault.gpa, fault.size)


_DECODERS: dict[int, Callable[[kvm_run], VcpuExit]] = {
    ExitReason.UNKNOWN: lambda run: Unknown(ExitReason.UNKNOWN, run.hw.hardware_exit_reason),
    ExitReason.EXCEPTION: lambda run: ExceptionExit(run.ex.exception, run.ex.error_code),
    ExitReason.HYPERCALL: lambda run: Hypercall(
        run.hypercall.nr, tuple(run.hypercall.args), run.hypercall.longmode != 0
    ),
    ExitReason.DEBUG: _debug,
    ExitReason.HLT: lambda run: Hlt(),
    ExitReason.MMIO: _mmio,
    ExitReason.IRQ_WINDOW_OPEN: lambda run: IrqWindowOpen(),
    ExitReason.SHUTDOWN: lambda run: Shutdown(),
    ExitReason.FAIL_ENTRY: lambda run: FailEntry(
        run.fail_entry.hardware_entry_failure_reason, run.fail_entry.cpu
    ),
    ExitReason.INTR: lambda run: Intr(),
    ExitReason.SET_TPR: lambda run: SetTpr(run.cr8),
    ExitReason.TPR_ACCESS: lambda run: TprAccess(run.tpr_access.rip, run.tpr_access.is_write != 0),
    ExitReason.NMI: lambda run: Nmi(),
    ExitReason.INTERNAL_ERROR: _internal_error,
    ExitReason.SYSTEM_EVENT: _system_event,
    ExitReason.IOAPIC_EOI: lambda run: IoapicEoi(run.eoi.vector),
    ExitReason.HYPERV: _hyperv,
    ExitReason.X86_RDMSR: lambda run: X86Rdmsr(run.msr.index, run.msr.reason),
    ExitReason.X86_WRMSR: lambda run: X86Wrmsr(run.msr.index, run.msr.data, run.msr.reason),
    ExitReason.DIRTY_RING_FULL: lambda run: DirtyRingFull(),
    ExitReason.AP_RESET_HOLD: lambda run: ApResetHold(),
    ExitReason.X86_BUS_LOCK: lambda run: X86BusLock(),
    ExitReason.XEN: _xen,
    ExitReason.NOTIFY: lambda run: Notify(run.notify.flags),
    ExitReason.MEMORY_FAULT: _memory_fault,
}
