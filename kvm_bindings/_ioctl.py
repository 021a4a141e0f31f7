"""One ioctl, named once: its name finds the request number and goes into the error."""

from __future__ import annotations

from kvm_bindings._abi import lib
from kvm_bindings.errors import KvmError


def ioctl_int(fd: int, name: str, argument: int = 0) -> int:
    """The ioctl ``name`` with a number. Returns what it returned; raises KvmError."""
    result = lib.kvm_ioctl_int(fd, getattr(lib, name), argument)
    if result < 0:
        raise KvmError(name, -result)
    return result


def ioctl_ptr(fd: int, name: str, argument: object) -> int:
    """The ioctl ``name`` with a pointer to a struct. Likewise."""
    result = lib.kvm_ioctl_ptr(fd, getattr(lib, name), argument)
    if result < 0:
        raise KvmError(name, -result)
    return result
