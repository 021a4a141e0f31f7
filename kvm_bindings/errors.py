"""KvmError: which call failed, how, and what to do about it.

KVM reports everything through errno, and uses few of them for many things: EINVAL of
KVM_CREATE_IRQCHIP and EINVAL of KVM_SET_SREGS have nothing in common. So the remedy is looked up
by the call and the errno, then by the errno alone. What each combination means is from the
kernel's Documentation/virt/kvm/api.rst and arch/x86/kvm (Linux 6.1).
"""

from __future__ import annotations

import errno as _errno
import os

_REMEDIES: dict[tuple[str, int], str] = {
    ("open", _errno.ENOENT): (
        "this kernel offers no KVM; load its module (modprobe kvm_intel or kvm_amd), enable "
        "virtualization in the firmware, or, inside a VM, nested virtualization"
    ),
    ("open", _errno.ENODEV): (
        "the device node is there but its driver is not; load the module (modprobe kvm_intel or "
        "kvm_amd)"
    ),
    ("open", _errno.EACCES): (
        "add your user to the device's group (sudo usermod -aG kvm $USER), then log in again"
    ),
    ("open", _errno.EPERM): (
        "the container or sandbox does not allow this device; pass it in (--device /dev/kvm)"
    ),
    ("KVM_GET_API_VERSION", _errno.ENOTTY): "the file is not a KVM device; expected /dev/kvm",
    ("KVM_CREATE_VM", _errno.EBUSY): (
        "another hypervisor holds the CPU's virtualization; stop it and retry"
    ),
    ("KVM_CREATE_VM", _errno.EINVAL): (
        "this KVM has not that type of VM; use type 0, or one that Cap.VM_TYPES lists"
    ),
    ("KVM_CREATE_VM", _errno.EIO): (
        "the CPU refused to enable virtualization; look for kvm in the kernel log (dmesg)"
    ),
    ("KVM_CREATE_VCPU", _errno.EEXIST): "a vCPU with this id exists; give each its own id",
    ("KVM_CREATE_VCPU", _errno.EINVAL): (
        "the id is too large, or as many vCPUs exist as may; ids are below Cap.MAX_VCPU_ID, the "
        "number is at most Cap.MAX_VCPUS"
    ),
    ("KVM_SET_USER_MEMORY_REGION", _errno.EINVAL): (
        "address and size must be multiples of 4 KiB, of host and guest memory alike, and the "
        "slot below Cap.NR_MEMSLOTS; a slot's size and host address cannot change, delete it first"
    ),
    ("KVM_SET_USER_MEMORY_REGION", _errno.EEXIST): (
        "the guest addresses overlap another slot's; delete or shorten one of them"
    ),
    ("KVM_GET_DIRTY_LOG", _errno.ENOENT): (
        "the slot keeps no log; set it with the flag KVM_MEM_LOG_DIRTY_PAGES first"
    ),
    ("KVM_CLEAR_DIRTY_LOG", _errno.ENOENT): (
        "the slot keeps no log; set it with the flag KVM_MEM_LOG_DIRTY_PAGES first"
    ),
    ("KVM_CLEAR_DIRTY_LOG", _errno.EINVAL): (
        "first_page must be a multiple of 64, num_pages too unless it reaches the slot's end"
    ),
    ("KVM_CREATE_IRQCHIP", _errno.EEXIST): "the VM has its irqchip already; create it once",
    ("KVM_CREATE_IRQCHIP", _errno.EINVAL): "create the irqchip before the first vCPU",
    ("KVM_CREATE_PIT2", _errno.EEXIST): "the VM has its PIT already; create it once",
    ("KVM_CREATE_PIT2", _errno.ENOENT): "the PIT needs the irqchip; call create_irqchip first",
    ("KVM_GET_IRQCHIP", _errno.ENXIO): "the VM has no irqchip; call create_irqchip first",
    ("KVM_SET_IRQCHIP", _errno.ENXIO): "the VM has no irqchip; call create_irqchip first",
    ("KVM_IRQ_LINE", _errno.ENXIO): "the VM has no irqchip; call create_irqchip first",
    ("KVM_GET_PIT2", _errno.ENXIO): "the VM has no PIT; call create_pit2 first",
    ("KVM_SET_PIT2", _errno.ENXIO): "the VM has no PIT; call create_pit2 first",
    ("KVM_SET_TSS_ADDR", _errno.EINVAL): "the three pages must lie wholly below 4 GiB",
    ("KVM_SET_IDENTITY_MAP_ADDR", _errno.EINVAL): (
        "the address must be set before the first vCPU is created"
    ),
    ("KVM_SET_BOOT_CPU_ID", _errno.EBUSY): "choose the boot CPU before the first vCPU is created",
    ("KVM_SET_GSI_ROUTING", _errno.EINVAL): (
        "a GSI or pin is out of range, or the VM has no irqchip; see KVM_SET_GSI_ROUTING in api.rst"
    ),
    ("KVM_SIGNAL_MSI", _errno.EINVAL): (
        "the address is no MSI address (0xfee.....), or the VM has no in-kernel local APIC"
    ),
    ("KVM_IRQFD", _errno.EINVAL): (
        "the VM needs create_irqchip first, and the fd must be an eventfd"
    ),
    ("KVM_IRQFD", _errno.EBUSY): "this eventfd is an irqfd already; give each GSI its own",
    ("KVM_IOEVENTFD", _errno.EEXIST): (
        "an ioeventfd with this address, length and datamatch exists; remove it first"
    ),
    ("KVM_IOEVENTFD", _errno.ENOENT): "no such ioeventfd; remove it with what it was added with",
    ("KVM_IOEVENTFD", _errno.EINVAL): (
        "the length must be 0, 1, 2, 4 or 8, with no datamatch if 0; the fd must be an eventfd"
    ),
    ("KVM_SET_SREGS", _errno.EINVAL): (
        "the registers contradict each other or the CPUID; long mode needs CR0.PG, CR4.PAE, "
        "EFER.LME and EFER.LMA together, and CR4's bits need their CPUID features"
    ),
    ("KVM_SET_CPUID2", _errno.E2BIG): "KVM takes at most 256 CPUID entries",
    ("KVM_SET_CPUID2", _errno.EINVAL): (
        "CPUID cannot change once the vCPU has run, and must not promise what the host has not"
    ),
    ("KVM_GET_LAPIC", _errno.EINVAL): "the VM has no in-kernel local APIC; call create_irqchip",
    ("KVM_SET_LAPIC", _errno.EINVAL): "the VM has no in-kernel local APIC; call create_irqchip",
    ("KVM_SET_MP_STATE", _errno.EINVAL): (
        "without an in-kernel local APIC a vCPU can only be runnable; call create_irqchip"
    ),
    ("KVM_INTERRUPT", _errno.ENXIO): (
        "with an in-kernel irqchip interrupts are raised by irq_line, an irqfd or signal_msi"
    ),
    ("KVM_INTERRUPT", _errno.EEXIST): (
        "an interrupt is waiting already; run until IRQ_WINDOW_OPEN, then inject the next"
    ),
    ("KVM_KVMCLOCK_CTRL", _errno.EINVAL): "the guest does not use kvmclock; nothing needs telling",
    ("KVM_SET_SIGNAL_MASK", _errno.EINVAL): "signal numbers are 1 to 64",
    ("KVM_RUN", _errno.EINVAL): (
        "the run page holds what KVM does not accept: kvm_valid_regs or kvm_dirty_regs beyond "
        "Cap.SYNC_REGS, or a value in the sync regs that set_sregs would refuse"
    ),
    ("KVM_RUN", _errno.EFAULT): (
        "KVM could not reach memory that it needed; is every memory slot's buffer still mapped?"
    ),
}

_GENERIC: dict[int, str] = {
    _errno.EBADF: "the file descriptor is closed; was the object used after close()?",
    _errno.ENOTTY: "this KVM has no such call; check the capability first",
    _errno.EOPNOTSUPP: "this KVM does not support it; check the capability first",
    _errno.ENXIO: "what the call is about was not created",
    _errno.EINVAL: "a value is out of range, or the calls came in the wrong order; see api.rst",
    _errno.EPERM: "this KVM or this process is not allowed to; check the capability first",
    _errno.EFAULT: "a buffer is not, or not wholly, mapped",
    _errno.ENOMEM: "the host is out of memory; free some, or give the guest less",
    _errno.EMFILE: "this process has too many open files; close some or raise ulimit -n",
    _errno.ENFILE: "the host has too many open files; close some or raise fs.file-max",
    _errno.EIO: "the host's KVM failed; look for kvm in the kernel log (dmesg)",
    _errno.ESRCH: "the thread has ended",
    _errno.EBUSY: "something else holds it",
}

_LAST_RESORT = "see the call in the kernel's Documentation/virt/kvm/api.rst"


class KvmError(OSError):
    """A call to KVM that failed. One line: the call, the error, what to do.

    ``ioctl``: the call's name (``KVM_CREATE_VM``, ``open /dev/kvm``); ``errno``, ``strerror``: as
    in every OSError; ``remedy``: what to do about it.
    """

    def __init__(self, ioctl: str, errno: int, remedy: str | None = None) -> None:
        super().__init__(errno, os.strerror(errno))
        self.ioctl = ioctl
        if remedy is None:
            remedy = _REMEDIES.get((ioctl.partition(" ")[0], errno))
        self.remedy = remedy or _GENERIC.get(errno, _LAST_RESORT)

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno or 0, str(self.errno))
        return f"{self.ioctl}: {self.strerror} ({name}): {self.remedy}"

    def __reduce__(self) -> tuple[type[KvmError], tuple[str, int, str]]:
        return KvmError, (self.ioctl, self.errno or 0, self.remedy)
