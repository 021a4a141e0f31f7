"""VcpuState: what a vCPU holds. Registers, MSRs, CPUID, local APIC, pending events.

Kernel reference: Documentation/virt/kvm/api.rst, the calls of type "vcpu ioctl". All of them are
for the thread that runs the vCPU, between two runs: KVM holds the vCPU's lock during KVM_RUN, and
another thread's call would wait for the next exit.

Getters return the kernel's own struct, freshly read; setters take one back.
"""

from __future__ import annotations

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_int, ioctl_ptr
from kvm_bindings.errors import KvmError

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self

    from kvm_bindings.cpuid import CpuidEntry
    from kvm_bindings.structs import (
        kvm_debugregs,
        kvm_fpu,
        kvm_lapic_state,
        kvm_regs,
        kvm_sregs,
        kvm_sregs2,
        kvm_translation,
        kvm_vcpu_events,
        kvm_xcrs,
        kvm_xsave,
    )


class VcpuState:
    """A vCPU's file descriptor and its state. ``Vcpu`` adds the running."""

    __slots__ = ("fd", "id")

    def __init__(self, fd: int, vcpu_id: int) -> None:
        self.fd = fd
        self.id = vcpu_id

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file descriptor. Calls after that raise KvmError with EBADF."""
        if self.fd >= 0:
            lib.kvm_close(self.fd)
            self.fd = -1

    def enable_cap(self, cap: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP: an optional behaviour of this vCPU; ``args``, at most 4, belong to it."""
        ioctl_ptr(
            self.fd,
            "KVM_ENABLE_CAP",
            ffi.new("struct kvm_enable_cap *", {"cap": cap, "flags": flags, "args": list(args)}),
        )

    def get_stats(self) -> dict[str, int | list[int]]:
        """KVM's counters of this vCPU, by KVM's names. Needs Cap.BINARY_STATS_FD."""
        from kvm_bindings.stats import read_stats

        return read_stats(self.fd)

    # ---- registers ----

    def get_regs(self) -> kvm_regs:
        """KVM_GET_REGS: the general registers, rip and rflags."""
        return self._get("KVM_GET_REGS", "kvm_regs")  # type: ignore[no-any-return]

    def set_regs(self, regs: kvm_regs) -> None:
        """KVM_SET_REGS."""
        ioctl_ptr(self.fd, "KVM_SET_REGS", regs)

    def get_sregs(self) -> kvm_sregs:
        """KVM_GET_SREGS: segments, descriptor tables, control registers, EFER, APIC base."""
        return self._get("KVM_GET_SREGS", "kvm_sregs")  # type: ignore[no-any-return]

    def set_sregs(self, sregs: kvm_sregs) -> None:
        """KVM_SET_SREGS: refused (EINVAL) if they do not make up a possible CPU state."""
        ioctl_ptr(self.fd, "KVM_SET_SREGS", sregs)

    def get_sregs2(self) -> kvm_sregs2:
        """KVM_GET_SREGS2: sregs with the PAE PDPTRs. Needs Cap.SREGS2."""
        return self._get("KVM_GET_SREGS2", "kvm_sregs2")  # type: ignore[no-any-return]

    def set_sregs2(self, sregs: kvm_sregs2) -> None:
        """KVM_SET_SREGS2."""
        ioctl_ptr(self.fd, "KVM_SET_SREGS2", sregs)

    def get_fpu(self) -> kvm_fpu:
        """KVM_GET_FPU: x87 and SSE registers.

        KVM neither fills in ``mxcsr`` nor takes it: that is in the XSAVE area, at byte 24.
        """
        return self._get("KVM_GET_FPU", "kvm_fpu")  # type: ignore[no-any-return]

    def set_fpu(self, fpu: kvm_fpu) -> None:
        """KVM_SET_FPU."""
        ioctl_ptr(self.fd, "KVM_SET_FPU", fpu)

    def get_debugregs(self) -> kvm_debugregs:
        """KVM_GET_DEBUGREGS: the guest's own DR0..DR3, DR6, DR7."""
        return self._get("KVM_GET_DEBUGREGS", "kvm_debugregs")  # type: ignore[no-any-return]

    def set_debugregs(self, debugregs: kvm_debugregs) -> None:
        """KVM_SET_DEBUGREGS."""
        ioctl_ptr(self.fd, "KVM_SET_DEBUGREGS", debugregs)

    def get_xsave(self) -> kvm_xsave:
        """KVM_GET_XSAVE: the XSAVE area, 4096 bytes, in the host's layout (CPUID leaf 0xd)."""
        return self._get("KVM_GET_XSAVE", "kvm_xsave")  # type: ignore[no-any-return]

    def get_xsave2(self, size_bytes: int) -> kvm_xsave:
        """KVM_GET_XSAVE2: the whole area; ``size_bytes`` is ``vm.check_extension(Cap.XSAVE2)``.

        Raises ValueError for a size below the 4096 bytes that the area always has.
        """
        extra = size_bytes - ffi.sizeof("struct kvm_xsave")
        if extra < 0:
            raise ValueError(f"an XSAVE area of {size_bytes} bytes; expected 4096 or more")
        xsave = ffi.new("struct kvm_xsave *", {"extra": (extra + 3) // 4})
        ioctl_ptr(self.fd, "KVM_GET_XSAVE2", xsave)
        return xsave  # type: ignore[no-any-return]

    def set_xsave(self, xsave: kvm_xsave) -> None:
        """KVM_SET_XSAVE: put back what ``get_xsave`` or ``get_xsave2`` gave."""
        ioctl_ptr(self.fd, "KVM_SET_XSAVE", xsave)

    def get_xcrs(self) -> kvm_xcrs:
        """KVM_GET_XCRS: ``nr_xcrs`` of ``xcrs`` are valid; in practice XCR0 alone."""
        return self._get("KVM_GET_XCRS", "kvm_xcrs")  # type: ignore[no-any-return]

    def set_xcrs(self, xcrs: kvm_xcrs) -> None:
        """KVM_SET_XCRS."""
        ioctl_ptr(self.fd, "KVM_SET_XCRS", xcrs)

    # ---- identity: CPUID, MSRs, TSC ----

    def set_cpuid2(self, entries: Iterable[CpuidEntry]) -> None:
        """KVM_SET_CPUID2: the guest's CPUID. KVM may adjust it: ``get_cpuid2`` tells."""
        from kvm_bindings.cpuid import write_entries

        write_entries(self.fd, entries)

    def get_cpuid2(self) -> list[CpuidEntry]:
        """KVM_GET_CPUID2: the CPUID that the guest sees."""
        from kvm_bindings.cpuid import read_entries

        return read_entries(self.fd, "KVM_GET_CPUID2")

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: values by index.

        KVM stops, without an error, at the first MSR it cannot read: that one and those after it
        are missing from the result.
        """
        from kvm_bindings.msrs import get_msrs

        return get_msrs(self.fd, indices)

    def set_msrs(self, values: Mapping[int, int] | Iterable[tuple[int, int]]) -> int:
        """KVM_SET_MSRS: how many were set.

        KVM stops, without an error, at the first MSR or value it refuses: if the result is less
        than was given, that is the index of the refused one.
        """
        from kvm_bindings.msrs import set_msrs

        return set_msrs(self.fd, values)

    def get_tsc_khz(self) -> int:
        """KVM_GET_TSC_KHZ: the frequency of the guest's TSC."""
        return ioctl_int(self.fd, "KVM_GET_TSC_KHZ")

    def set_tsc_khz(self, khz: int) -> None:
        """KVM_SET_TSC_KHZ: a frequency other than the host's needs Cap.TSC_CONTROL."""
        ioctl_int(self.fd, "KVM_SET_TSC_KHZ", khz)

    # ---- interrupts and events ----

    def get_lapic(self) -> kvm_lapic_state:
        """KVM_GET_LAPIC: the local APIC's register page; register at offset 0x20: ``regs[0x20]``.

        ``cdata.view(lapic)`` gives its bytes for reading and writing.
        """
        return self._get("KVM_GET_LAPIC", "kvm_lapic_state")  # type: ignore[no-any-return]

    def set_lapic(self, lapic: kvm_lapic_state) -> None:
        """KVM_SET_LAPIC."""
        ioctl_ptr(self.fd, "KVM_SET_LAPIC", lapic)

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: KVM_MP_STATE_RUNNABLE, _UNINITIALIZED, _HALTED, ..."""
        return int(self._get("KVM_GET_MP_STATE", "kvm_mp_state").mp_state)

    def set_mp_state(self, mp_state: int) -> None:
        """KVM_SET_MP_STATE. Other than RUNNABLE needs the in-kernel local APIC."""
        state = ffi.new("struct kvm_mp_state *", {"mp_state": mp_state})
        ioctl_ptr(self.fd, "KVM_SET_MP_STATE", state)

    def get_vcpu_events(self) -> kvm_vcpu_events:
        """KVM_GET_VCPU_EVENTS: exceptions, interrupts, NMIs and SMIs pending or in delivery."""
        return self._get("KVM_GET_VCPU_EVENTS", "kvm_vcpu_events")  # type: ignore[no-any-return]

    def set_vcpu_events(self, events: kvm_vcpu_events) -> None:
        """KVM_SET_VCPU_EVENTS: ``flags`` (KVM_VCPUEVENT_VALID_...) says which optional parts."""
        ioctl_ptr(self.fd, "KVM_SET_VCPU_EVENTS", events)

    def interrupt(self, vector: int) -> None:
        """KVM_INTERRUPT: inject one; only without an in-kernel irqchip, when the guest is ready."""
        ioctl_ptr(self.fd, "KVM_INTERRUPT", ffi.new("struct kvm_interrupt *", {"irq": vector}))

    def nmi(self) -> None:
        """KVM_NMI: a non-maskable interrupt, on this vCPU's next entry."""
        ioctl_int(self.fd, "KVM_NMI")

    def smi(self) -> None:
        """KVM_SMI: a system management interrupt. Needs Cap.X86_SMM."""
        ioctl_int(self.fd, "KVM_SMI")

    def kvmclock_ctrl(self) -> None:
        """KVM_KVMCLOCK_CTRL: tell a guest with kvmclock that it was paused, so that its watchdogs
        forgive it."""
        ioctl_int(self.fd, "KVM_KVMCLOCK_CTRL")

    def set_tpr_access_reporting(self, enabled: bool) -> None:
        """KVM_TPR_ACCESS_REPORTING: make TPR_ACCESS exits. Needs Cap.VAPIC."""
        control = ffi.new("struct kvm_tpr_access_ctl *", {"enabled": enabled})
        ioctl_ptr(self.fd, "KVM_TPR_ACCESS_REPORTING", control)

    # ---- looking in ----

    def translate(self, linear_address: int) -> kvm_translation:
        """KVM_TRANSLATE: where the guest's page tables lead now; look at ``valid`` first."""
        translation = ffi.new("struct kvm_translation *", {"linear_address": linear_address})
        ioctl_ptr(self.fd, "KVM_TRANSLATE", translation)
        return translation  # type: ignore[no-any-return]

    def set_guest_debug(self, control: int, debugreg: Sequence[int] = ()) -> None:
        """KVM_SET_GUEST_DEBUG: single steps and breakpoints of ours, as DEBUG exits.

        ``control``: KVM_GUESTDBG_ENABLE and which of the others; 0 ends it. ``debugreg``: what
        DR0..DR7 hold meanwhile, for KVM_GUESTDBG_USE_HW_BP.
        """
        debug = ffi.new("struct kvm_guest_debug *", {"control": control})
        debug.arch.debugreg[0 : len(debugreg)] = list(debugreg)
        ioctl_ptr(self.fd, "KVM_SET_GUEST_DEBUG", debug)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """KVM_SET_SIGNAL_MASK: the signals blocked during KVM_RUN instead of the thread's own.

        None goes back to the thread's own. Raises ValueError for a number that is no signal.
        """
        if blocked is None:
            mask = ffi.NULL
        else:
            bits = 0
            for signal_number in blocked:
                if not 1 <= signal_number <= 64:
                    raise ValueError(f"{signal_number} is no signal; expected 1 to 64")
                bits |= 1 << (signal_number - 1)
            # The kernel's sigset_t: 64 bits, signal 1 the lowest.
            mask = ffi.new("struct kvm_signal_mask *", {"len": 8, "sigset": 8})
            ffi.memmove(mask.sigset, bits.to_bytes(8, "little"), 8)
        ioctl_ptr(self.fd, "KVM_SET_SIGNAL_MASK", mask)

    def _get(self, name: str, struct: str) -> Any:
        value = ffi.new(f"struct {struct} *")
        result = lib.kvm_ioctl_ptr(self.fd, getattr(lib, name), value)
        if result < 0:
            raise KvmError(name, -result)
        return value
