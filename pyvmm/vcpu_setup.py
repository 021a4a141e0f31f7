"""Putting the values that ``boot`` and ``arch`` decided on into a vCPU.

The order matters: CPUID first, since it says which MSRs and which state exist; then MSRs, FPU and
local APIC; the registers of the entry last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvm_bindings import CpuidEntry, constants, view
from pyvmm.arch.x86_64 import cpuid, lapic, msrs
from pyvmm.errors import HostError

if TYPE_CHECKING:
    from kvm_bindings import Kvm, Vcpu
    from kvm_bindings.structs import kvm_segment
    from pyvmm.arch.x86_64.gdt import Segment
    from pyvmm.arch.x86_64.registers import EntryState

# What FNINIT leaves (SDM 1 8.1.5): a processor after reset has the exceptions unmasked. MXCSR is
# not KVM_SET_FPU's to set; it is right after reset.
_FCW_INITIAL = 0x37F


class CpuidSource:
    """What this host can give a guest, asked once for all vCPUs.

    ``supported`` is what KVM_GET_SUPPORTED_CPUID says; ``emulated``: see ``cpuid.guest_leaves``.
    Linux leaves the PIT alone if its local APICs have the mode ``offers_tsc_deadline`` is about
    (6.12, arch/x86/kernel/apic/apic.c, apic_needs_pit), even if it is told not to use those.
    """

    def __init__(
        self,
        kvm: Kvm,
        supported: list[CpuidEntry],
        cpu_count: int,
        *,
        emulated: bool,
        offers_tsc_deadline: bool,
    ) -> None:
        self._supported = supported
        self._emulated = emulated
        self._tsc_deadline = offers_tsc_deadline and bool(
            kvm.check_extension(constants.KVM_CAP_TSC_DEADLINE_TIMER)
        )
        self._knows_tsc = bool(kvm.check_extension(constants.KVM_CAP_GET_TSC_KHZ))
        self._cpu_count = cpu_count

    def leaves_for(self, vcpu: Vcpu) -> list[cpuid.Leaf]:
        """The CPUID leaves that ``vcpu``, whose number is its APIC id, shall see."""
        return cpuid.guest_leaves(
            self._supported,
            apic_id=vcpu.id,
            cpu_count=self._cpu_count,
            tsc_deadline=self._tsc_deadline,
            tsc_khz=vcpu.get_tsc_khz() if self._knows_tsc else 0,
            emulated=self._emulated,
        )


def set_up_vcpu(vcpu: Vcpu, leaves: list[cpuid.Leaf], entry: EntryState | None) -> None:
    """Make a fresh vCPU ready to run from ``entry``; without one, from where a SIPI says.

    Raises HostError if KVM does not take an MSR that kernels rely on.
    """
    vcpu.set_cpuid2([CpuidEntry(*leaf) for leaf in leaves])
    accepted = vcpu.set_msrs(msrs.BOOT_MSRS)
    if accepted < len(msrs.BOOT_MSRS):
        refused = list(msrs.BOOT_MSRS)[accepted]
        raise HostError(
            f"KVM did not let MSR {refused:#x} be set to {msrs.BOOT_MSRS[refused]:#x}, "
            "which kernels rely on; `pyvmm doctor` tells more of this host"
        )
    fpu = vcpu.get_fpu()
    fpu.fcw = _FCW_INITIAL
    vcpu.set_fpu(fpu)
    wire_lapic(vcpu)
    if entry is not None:
        set_entry(vcpu, entry)


def wire_lapic(vcpu: Vcpu) -> None:
    """Connect the local APIC's LINT pins as PC firmware does."""
    state = vcpu.get_lapic()
    lapic.wire_local_interrupts(view(state))
    vcpu.set_lapic(state)


def set_entry(vcpu: Vcpu, entry: EntryState) -> None:
    """Set general, segment and control registers to ``entry``; the rest of them to zero."""
    sregs = vcpu.get_sregs()
    _set_segment(sregs.cs, entry.code)
    for register in (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        _set_segment(register, entry.data)
    _set_segment(sregs.tr, entry.task)
    sregs.gdt.base, sregs.gdt.limit = entry.gdt_gpa, len(entry.gdt) - 1
    sregs.idt.base, sregs.idt.limit = 0, 0
    sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer = entry.cr0, entry.cr3, entry.cr4, entry.efer
    vcpu.set_sregs(sregs)

    regs = vcpu.get_regs()
    for name in ("rax", "rcx", "rdx", "rdi", "rbp", *(f"r{n}" for n in range(8, 16))):
        setattr(regs, name, 0)
    regs.rip, regs.rsp, regs.rflags = entry.rip, entry.rsp, entry.rflags
    regs.rax, regs.rbx, regs.rsi = entry.rax, entry.rbx, entry.rsi
    vcpu.set_regs(regs)


def _set_segment(register: kvm_segment, segment: Segment) -> None:
    for field, value in segment._asdict().items():
        setattr(register, field, value)
    register.unusable = 0
