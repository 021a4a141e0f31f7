"""Typed Python bindings of KVM's kernel interface on x86-64.

    from kvm_bindings import ExitReason, Kvm

    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        vm.set_user_memory_region(0, 0, memory)
        while vcpu.run() == ExitReason.IO:
            print(vcpu.decode())

Kvm, Vm and Vcpu are the three file descriptors, their methods the ioctls (without ``KVM_``), and
structs are the kernel's own, by its own field names. An error is a KvmError that names the call,
the errno and the remedy. It is what kvm-ioctls and kvm-bindings are for Rust.

Usable without pyvmm. Importing it is cheap: what a running VM does not need is loaded when used.
"""

from __future__ import annotations

from kvm_bindings.errors import KvmError
from kvm_bindings.exit_reason import ExitReason, exit_reason_name
from kvm_bindings.system import Kvm
from kvm_bindings.vcpu import Vcpu, install_kick_signal
from kvm_bindings.vm import Vm

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    from kvm_bindings.capabilities import Cap
    from kvm_bindings.cdata import as_dict, host_address, new, view
    from kvm_bindings.cpuid import CpuidEntry
    from kvm_bindings.exits import VcpuExit
    from kvm_bindings.msrs import MsrFilterRange
    from kvm_bindings.routing import IrqchipRoute, MsiRoute

__all__ = [
    "Cap",
    "CpuidEntry",
    "ExitReason",
    "IrqchipRoute",
    "Kvm",
    "KvmError",
    "MsiRoute",
    "MsrFilterRange",
    "Vcpu",
    "VcpuExit",
    "Vm",
    "as_dict",
    "exit_reason_name",
    "host_address",
    "install_kick_signal",
    "new",
    "view",
]

_LAZY = {
    "Cap": "capabilities",
    "CpuidEntry": "cpuid",
    "IrqchipRoute": "routing",
    "MsiRoute": "routing",
    "MsrFilterRange": "msrs",
    "VcpuExit": "exits",
    "as_dict": "cdata",
    "host_address": "cdata",
    "new": "cdata",
    "view": "cdata",
}


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> object:
        module = _LAZY.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(f"{__name__}.{module}"), name)
        globals()[name] = value
        return value
