"""What pyvmm asks of a host's KVM, and what each of it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_bindings import Cap
from pyvmm.errors import HostError

if TYPE_CHECKING:
    from kvm_bindings import Kvm


class Wanted(NamedTuple):
    """A capability, whether there is no machine without it, and its purpose."""

    cap: Cap
    required: bool
    purpose: str


WANTED = (
    Wanted(Cap.USER_MEMORY, True, "guest memory"),
    Wanted(Cap.IRQCHIP, True, "interrupt controllers in the kernel"),
    Wanted(Cap.PIT2, True, "the timer in the kernel"),
    Wanted(Cap.SET_TSS_ADDR, True, "real mode on Intel"),
    Wanted(Cap.SET_IDENTITY_MAP_ADDR, True, "real mode on Intel"),
    Wanted(Cap.EXT_CPUID, True, "the guest's CPUID"),
    Wanted(Cap.IMMEDIATE_EXIT, True, "stopping a vCPU without a lost wake-up"),
    Wanted(Cap.MP_STATE, True, "seeing that a guest has halted for good"),
    Wanted(Cap.COALESCED_PIO, False, "console output without an exit for each byte"),
    Wanted(Cap.TSC_DEADLINE_TIMER, False, "the guest's precise timer"),
    Wanted(Cap.IRQFD, False, "interrupts from other threads without a system call of ours"),
    Wanted(Cap.IOEVENTFD, False, "doorbells without an exit"),
    Wanted(Cap.SYNC_REGS, False, "registers without a system call"),
    Wanted(Cap.XSAVE, False, "looking at the FPU's state"),
    Wanted(Cap.ADJUST_CLOCK, False, "a clock that stands still over a pause"),
    Wanted(Cap.EXIT_ON_EMULATION_FAILURE, False, "precise reports of emulation failures"),
)


def check_required(kvm: Kvm) -> None:
    """Raise HostError, naming it, if a capability is missing without which there is no machine."""
    for wanted in WANTED:
        if wanted.required and not kvm.check_extension(wanted.cap):
            raise HostError(
                f"this host's KVM has no KVM_CAP_{wanted.cap.name} ({wanted.purpose}), which pyvmm "
                "needs; a newer Linux kernel has it; `pyvmm doctor` tells what else is missing"
            )
