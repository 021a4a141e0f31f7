"""What kind of machine the tests run on, where that decides what KVM can do there."""

from __future__ import annotations


def is_emulated_by_qemu() -> bool:
    """Whether this machine's own processor is QEMU's TCG, as in the lab."""
    with open("/proc/cpuinfo", encoding="utf-8") as cpuinfo:
        return any(line.startswith("model name") and "QEMU TCG" in line for line in cpuinfo)
