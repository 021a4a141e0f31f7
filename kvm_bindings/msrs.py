"""MSRs: reading and writing many at once, and the filter that sends accesses to userspace."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_ptr


def get_msrs(fd: int, indices: Iterable[int]) -> dict[int, int]:
    """KVM_GET_MSRS on a vCPU or the system: values by index, up to the first that KVM refused."""
    wanted = [(index,) for index in indices]
    msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(wanted), "entries": wanted})
    count = ioctl_ptr(fd, "KVM_GET_MSRS", msrs)
    return {entry.index: entry.data for entry in msrs.entries[0:count]}


def set_msrs(fd: int, values: Mapping[int, int] | Iterable[tuple[int, int]]) -> int:
    """KVM_SET_MSRS on a vCPU: how many were set, in order, before the first that KVM refused."""
    pairs = values.items() if isinstance(values, Mapping) else values
    entries = [(index, 0, data) for index, data in pairs]
    msrs = ffi.new("struct kvm_msrs *", {"nmsrs": len(entries), "entries": entries})
    return ioctl_ptr(fd, "KVM_SET_MSRS", msrs)


class MsrFilterRange(NamedTuple):
    """MSRs ``base`` .. ``base + nmsrs``: for accesses in ``flags``, a 1 in ``bitmap`` allows.

    ``flags``: KVM_MSR_FILTER_READ and KVM_MSR_FILTER_WRITE. ``bitmap``: one bit for each MSR, the
    lowest bit of the first byte first.
    """

    flags: int
    base: int
    nmsrs: int
    bitmap: bytes


def set_msr_filter(fd: int, ranges: Iterable[MsrFilterRange], default_deny: bool) -> None:
    """KVM_X86_SET_MSR_FILTER on a VM. Raises ValueError for ranges that KVM has no room for."""
    listed = list(ranges)
    if len(listed) > lib.KVM_MSR_FILTER_MAX_RANGES:
        raise ValueError(
            f"{len(listed)} MSR ranges were given; KVM takes {lib.KVM_MSR_FILTER_MAX_RANGES}"
        )
    msr_filter = ffi.new("struct kvm_msr_filter *")
    msr_filter.flags = (
        lib.KVM_MSR_FILTER_DEFAULT_DENY if default_deny else lib.KVM_MSR_FILTER_DEFAULT_ALLOW
    )
    bitmaps = []  # KVM copies them; they must live until it has
    for slot, given in zip(msr_filter.ranges, listed, strict=False):
        if len(given.bitmap) * 8 < given.nmsrs:
            raise ValueError(
                f"the bitmap for {given.nmsrs} MSRs at {given.base:#x} has {len(given.bitmap)} "
                f"bytes; expected {(given.nmsrs + 7) // 8}"
            )
        bitmap = ffi.new("__u8[]", given.bitmap)
        bitmaps.append(bitmap)
        slot.flags, slot.base, slot.nmsrs, slot.bitmap = (
            given.flags,
            given.base,
            given.nmsrs,
            bitmap,
        )
    ioctl_ptr(fd, "KVM_X86_SET_MSR_FILTER", msr_filter)
