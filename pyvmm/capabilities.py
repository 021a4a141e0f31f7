"""What pyvmm asks of a host's KVM, and what each of it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from kvm_bindings import constants
from pyvmm.errors import HostError

if TYPE_CHECKING:
    from kvm_bindings import Kvm


class Wanted(NamedTuple):
    """A capability (KVM_CAP_``name``), whether there is no machine without it, and its purpose."""

    name: str
    required: bool
    purpose: str

    def ask(self, kvm: Kvm) -> int:
        """What the host's KVM says to it: 0 if it has not got it."""
        # Not by kvm_bindings.Cap: an enum of all capabilities takes 5 ms of each start to make.
        return kvm.check_extension(getattr(constants, f"KVM_CAP_{self.name}"))


WANTED = (
    Wanted("USER_MEMORY", True, "guest memory"),
    Wanted("IRQCHIP", True, "interrupt controllers in the kernel"),
    Wanted("PIT2", True, "the timer in the kernel"),
    Wanted("SET_TSS_ADDR", True, "real mode on Intel"),
    Wanted("SET_IDENTITY_MAP_ADDR", True, "real mode on Intel"),
    Wanted("EXT_CPUID", True, "the guest's CPUID"),
    Wanted("IMMEDIATE_EXIT", True, "stopping a vCPU without a lost wake-up"),
    Wanted("MP_STATE", True, "seeing that a guest has halted for good"),
    Wanted("COALESCED_PIO", False, "console output without an exit for each byte"),
    Wanted("TSC_DEADLINE_TIMER", False, "the guest's precise timer"),
    Wanted("IRQFD", False, "interrupts from other threads without a system call of ours"),
    Wanted("IOEVENTFD", False, "doorbells without an exit"),
    Wanted("SYNC_REGS", False, "registers without a system call"),
    Wanted("XSAVE", False, "looking at the FPU's state"),
    Wanted("ADJUST_CLOCK", False, "a clock that stands still over a pause"),
    Wanted("EXIT_ON_EMULATION_FAILURE", False, "precise reports of emulation failures"),
)


def check_required(kvm: Kvm) -> None:
    """Raise HostError, naming it, if a capability is missing without which there is no machine."""
    for wanted in WANTED:
        if wanted.required and not wanted.ask(kvm):
            raise HostError(
                f"this host's KVM has no KVM_CAP_{wanted.name} ({wanted.purpose}), which pyvmm "
                "needs; a newer Linux kernel has it; `pyvmm doctor` tells what else is missing"
            )
