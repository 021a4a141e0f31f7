"""Binary statistics: KVM's counters of a VM or a vCPU (KVM_GET_STATS_FD, Linux 5.14).

The file describes itself: a header, then for each statistic a descriptor with its name, then the
data, all 64-bit numbers. See api.rst, 4.133.
"""

from __future__ import annotations

import os

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_int


def read_stats(fd: int) -> dict[str, int | list[int]]:
    """The statistics of the VM or vCPU ``fd`` now, by KVM's names; histograms as lists.

    Raises KvmError if this KVM has none to give (Cap.BINARY_STATS_FD).
    """
    stats_fd = ioctl_int(fd, "KVM_GET_STATS_FD")
    try:
        return _decode(stats_fd)
    finally:
        lib.kvm_close(stats_fd)


def _decode(stats_fd: int) -> dict[str, int | list[int]]:
    header = ffi.new("struct kvm_stats_header *")
    os.preadv(stats_fd, [ffi.buffer(header)], 0)
    stride = ffi.sizeof("struct kvm_stats_desc") + header.name_size
    descriptors = bytearray(stride * header.num_desc)
    os.preadv(stats_fd, [descriptors], header.desc_offset)
    base = ffi.from_buffer("char[]", descriptors)
    result: dict[str, int | list[int]] = {}
    for index in range(header.num_desc):
        descriptor = ffi.cast("struct kvm_stats_desc *", base + index * stride)
        name = ffi.string(ffi.cast("char *", descriptor.name), header.name_size).decode()
        values = ffi.new("__u64[]", descriptor.size)
        os.preadv(stats_fd, [ffi.buffer(values)], header.data_offset + descriptor.offset)
        result[name] = values[0] if descriptor.size == 1 else list(values)
    return result
