"""CPUID tables: what KVM_GET_SUPPORTED_CPUID, KVM_GET_CPUID2 and KVM_SET_CPUID2 exchange."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any, NamedTuple

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_ptr
from kvm_bindings.errors import KvmError

MAX_ENTRIES = 4096
"""Where we stop asking; KVM itself takes and gives at most 256 (KVM_MAX_CPUID_ENTRIES)."""


class CpuidEntry(NamedTuple):
    """One CPUID leaf: ``struct kvm_cpuid_entry2`` without its padding.

    ``index`` counts only if ``flags`` has KVM_CPUID_FLAG_SIGNIFCANT_INDEX (the kernel's spelling).
    """

    function: int
    index: int  # type: ignore[assignment]  # hides tuple.index
    flags: int
    eax: int
    ebx: int
    ecx: int
    edx: int


def read_entries(fd: int, name: str) -> list[CpuidEntry]:
    """What the ioctl ``name`` on ``fd`` has to tell. Raises KvmError."""
    capacity = 256
    while True:
        table = ffi.new("struct kvm_cpuid2 *", {"nent": capacity, "entries": capacity})
        result = lib.kvm_ioctl_ptr(fd, getattr(lib, name), table)
        if result >= 0:
            return [
                CpuidEntry(e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx)
                for e in table.entries[0 : _count(table)]
            ]
        if result != -errno.E2BIG or capacity >= MAX_ENTRIES:
            raise KvmError(name, -result)
        capacity *= 2


def _count(table: Any) -> int:
    """How many entries KVM has written.

    ``nent`` says so, but KVM_GET_CPUID2 of older kernels (Linux 6.1 is one) leaves it at the number
    that there was room for. What was not written is still zero.
    """
    count: int = table.nent
    while count > 0:
        last = table.entries[count - 1]
        if last.function or last.eax or last.ebx or last.ecx or last.edx:
            break
        count -= 1
    return count


def write_entries(fd: int, entries: Iterable[tuple[int, int, int, int, int, int, int]]) -> None:
    """KVM_SET_CPUID2 on the vCPU ``fd``. Raises KvmError."""
    listed = list(entries)
    table = ffi.new("struct kvm_cpuid2 *", {"nent": len(listed), "entries": listed})
    ioctl_ptr(fd, "KVM_SET_CPUID2", table)
