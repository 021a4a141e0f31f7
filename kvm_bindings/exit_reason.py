"""ExitReason: why KVM_RUN returned, as plain ints.

Not an enum: ``vcpu.run()`` returns an int, and the loop that compares it runs a hundred thousand
times a second. The payloads, with names and types, are in ``kvm_bindings.exits``.
"""

from __future__ import annotations

from kvm_bindings._abi import lib


class ExitReason:
    """The KVM_EXIT_* numbers that an x86 vCPU can return (api.rst, "The kvm_run structure")."""

    UNKNOWN = lib.KVM_EXIT_UNKNOWN
    EXCEPTION = lib.KVM_EXIT_EXCEPTION
    IO = lib.KVM_EXIT_IO
    HYPERCALL = lib.KVM_EXIT_HYPERCALL
    DEBUG = lib.KVM_EXIT_DEBUG
    HLT = lib.KVM_EXIT_HLT
    MMIO = lib.KVM_EXIT_MMIO
    IRQ_WINDOW_OPEN = lib.KVM_EXIT_IRQ_WINDOW_OPEN
    SHUTDOWN = lib.KVM_EXIT_SHUTDOWN
    FAIL_ENTRY = lib.KVM_EXIT_FAIL_ENTRY
    INTR = lib.KVM_EXIT_INTR
    SET_TPR = lib.KVM_EXIT_SET_TPR
    TPR_ACCESS = lib.KVM_EXIT_TPR_ACCESS
    NMI = lib.KVM_EXIT_NMI
    INTERNAL_ERROR = lib.KVM_EXIT_INTERNAL_ERROR
    SYSTEM_EVENT = lib.KVM_EXIT_SYSTEM_EVENT
    IOAPIC_EOI = lib.KVM_EXIT_IOAPIC_EOI
    HYPERV = lib.KVM_EXIT_HYPERV
    X86_RDMSR = lib.KVM_EXIT_X86_RDMSR
    X86_WRMSR = lib.KVM_EXIT_X86_WRMSR
    DIRTY_RING_FULL = lib.KVM_EXIT_DIRTY_RING_FULL
    AP_RESET_HOLD = lib.KVM_EXIT_AP_RESET_HOLD
    X86_BUS_LOCK = lib.KVM_EXIT_X86_BUS_LOCK
    XEN = lib.KVM_EXIT_XEN
    NOTIFY = lib.KVM_EXIT_NOTIFY
    MEMORY_FAULT = lib.KVM_EXIT_MEMORY_FAULT


def exit_reason_name(reason: int) -> str:
    """``KVM_EXIT_IO`` for 2; ``KVM_EXIT_99`` for a number that is not known here."""
    for name, value in vars(ExitReason).items():
        if value == reason and name.isupper():
            return f"KVM_EXIT_{name}"
    return f"KVM_EXIT_{reason}"
