"""Kvm: the system file descriptor, /dev/kvm. What this host's KVM can do, and making VMs.

Kernel reference: Documentation/virt/kvm/api.rst, the calls of type "system ioctl".
"""

from __future__ import annotations

import errno

from kvm_bindings import _ioctl
from kvm_bindings._abi import ffi, lib
from kvm_bindings.errors import KvmError
from kvm_bindings.vm import Vm

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType

    from kvm_bindings.cpuid import CpuidEntry

MSR_LIST_START = 1024
"""Room for MSR indices in the first try; KVM has below 400 and says if it needs more."""


class Kvm:
    """An open /dev/kvm. A context manager: leaving it closes the file descriptor.

    VMs made from it live on without it.
    """

    __slots__ = ("fd",)

    def __init__(self, path: str = "/dev/kvm") -> None:
        """Open ``path`` and check that a KVM with the stable API answers.

        Raises KvmError, with what to do: no such file, no permission, not a KVM device.
        """
        self.fd = lib.kvm_open(path.encode())
        if self.fd < 0:
            raise KvmError(f"open {path}", -self.fd)
        try:
            version = self.api_version()
            if version != lib.KVM_API_VERSION:
                raise KvmError(
                    "KVM_GET_API_VERSION",
                    errno.EPROTO,
                    f"{path} speaks version {version} of the KVM API; expected "
                    f"{lib.KVM_API_VERSION}, which every Linux since 2.6.22 has",
                )
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Kvm:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file descriptor. Calls after that raise KvmError with EBADF."""
        if self.fd >= 0:
            lib.kvm_close(self.fd)
            self.fd = -1

    def api_version(self) -> int:
        """KVM_GET_API_VERSION: 12 on every KVM there is."""
        return _ioctl.ioctl_int(self.fd, "KVM_GET_API_VERSION")

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION: 0 if the host has not ``cap``, else 1 or the capability's value.

        ``cap`` is one of ``kvm_bindings.Cap``. What a VM may differ in, ask the VM.
        """
        return _ioctl.ioctl_int(self.fd, "KVM_CHECK_EXTENSION", cap)

    def vcpu_mmap_size(self) -> int:
        """KVM_GET_VCPU_MMAP_SIZE: bytes that a vCPU shares with userspace."""
        return _ioctl.ioctl_int(self.fd, "KVM_GET_VCPU_MMAP_SIZE")

    def create_vm(self, vm_type: int = 0) -> Vm:
        """KVM_CREATE_VM: a VM without memory, vCPUs or interrupt controllers."""
        mmap_size = self.vcpu_mmap_size()
        return Vm(_ioctl.ioctl_int(self.fd, "KVM_CREATE_VM", vm_type), mmap_size)

    def get_supported_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_SUPPORTED_CPUID: the CPUID leaves that this host and KVM can give a guest."""
        from kvm_bindings.cpuid import read_entries

        return read_entries(self.fd, "KVM_GET_SUPPORTED_CPUID")

    def get_emulated_cpuid(self) -> list[CpuidEntry]:
        """KVM_GET_EMULATED_CPUID: features that KVM emulates in software, slowly."""
        from kvm_bindings.cpuid import read_entries

        return read_entries(self.fd, "KVM_GET_EMULATED_CPUID")

    def get_msr_index_list(self) -> list[int]:
        """KVM_GET_MSR_INDEX_LIST: the MSRs that make up a guest's state."""
        return self._msr_indices("KVM_GET_MSR_INDEX_LIST")

    def get_msr_feature_index_list(self) -> list[int]:
        """KVM_GET_MSR_FEATURE_INDEX_LIST: the MSRs that ``get_feature_msrs`` can read."""
        return self._msr_indices("KVM_GET_MSR_FEATURE_INDEX_LIST")

    def get_feature_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS on the system: what the host supports, by MSR index.

        KVM stops at the first MSR it cannot read: that one and those after it are missing.
        """
        from kvm_bindings.msrs import get_msrs

        return get_msrs(self.fd, indices)

    def _msr_indices(self, name: str) -> list[int]:
        capacity = MSR_LIST_START
        while True:
            msr_list = ffi.new("struct kvm_msr_list *", {"nmsrs": capacity, "indices": capacity})
            result = lib.kvm_ioctl_ptr(self.fd, getattr(lib, name), msr_list)
            if result >= 0:
                return list(msr_list.indices[0 : msr_list.nmsrs])
            if msr_list.nmsrs <= capacity:  # not E2BIG, which says how many there are
                raise KvmError(name, -result)
            capacity = msr_list.nmsrs
