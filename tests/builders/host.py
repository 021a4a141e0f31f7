"""What kind of machine the tests run on, where that decides what KVM can do there."""

from __future__ import annotations

import functools

from kvm_bindings import Kvm
from pyvmm.probe import Virtualization, probe_virtualization


def is_emulated_by_qemu() -> bool:
    """Whether this machine's own processor is QEMU's TCG, as in the lab."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        return any(line.startswith("model name") and "QEMU TCG" in line for line in cpuinfo)


@functools.cache
def kvm_is_software() -> bool:
    """Whether this KVM has no hardware under it, and emulates the guest's kernel mode."""
    with Kvm() as kvm:
        return probe_virtualization(kvm) is Virtualization.SOFTWARE
