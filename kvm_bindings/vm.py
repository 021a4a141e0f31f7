"""Vm: the VM file descriptor. Memory slots, interrupt controllers, event fds, clock, vCPUs.

Kernel reference: Documentation/virt/kvm/api.rst, the calls of type "vm ioctl".

The order that x86 wants: the irqchip before the PIT and before any vCPU, the TSS and identity map
addresses before any vCPU.
"""

from __future__ import annotations

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_int, ioctl_ptr
from kvm_bindings.vcpu import Vcpu

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterable, Sequence
    from types import TracebackType
    from typing import Any

    from kvm_bindings.msrs import MsrFilterRange
    from kvm_bindings.routing import GsiRoute
    from kvm_bindings.structs import kvm_clock_data, kvm_irqchip, kvm_pit_state2

PAGE_SIZE = 4096
"""The unit of slots and dirty logs, whatever pages the host backs them with."""


class Vm:
    """A VM. A context manager: leaving it closes the file descriptor and lets go of the memory.

    The kernel keeps the VM itself until its vCPUs are closed too. Made by ``Kvm.create_vm``.
    """

    __slots__ = ("_slots", "fd", "vcpu_mmap_size")

    def __init__(self, fd: int, vcpu_mmap_size: int) -> None:
        self.fd = fd
        self.vcpu_mmap_size = vcpu_mmap_size
        self._slots: dict[int, Any] = {}  # keeps each slot's buffer from being unmapped

    def __enter__(self) -> Vm:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file descriptor; the slots' buffers may be closed after that."""
        if self.fd >= 0:
            lib.kvm_close(self.fd)
            self.fd = -1
        for exported in self._slots.values():
            ffi.release(exported)
        self._slots.clear()

    def check_extension(self, cap: int) -> int:
        """KVM_CHECK_EXTENSION on this VM: 0, or 1 or the capability's value."""
        return ioctl_int(self.fd, "KVM_CHECK_EXTENSION", cap)

    def enable_cap(self, cap: int, flags: int = 0, args: Sequence[int] = ()) -> None:
        """KVM_ENABLE_CAP: switch an optional behaviour on; ``args``, at most 4, belong to it."""
        ioctl_ptr(
            self.fd,
            "KVM_ENABLE_CAP",
            ffi.new("struct kvm_enable_cap *", {"cap": cap, "flags": flags, "args": list(args)}),
        )

    def create_vcpu(self, vcpu_id: int) -> Vcpu:
        """KVM_CREATE_VCPU. ``vcpu_id`` is its APIC id; id 0 boots unless told otherwise."""
        coalesced_page = self.check_extension(lib.KVM_CAP_COALESCED_MMIO)
        fd = ioctl_int(self.fd, "KVM_CREATE_VCPU", vcpu_id)
        return Vcpu(fd, vcpu_id, self.vcpu_mmap_size, coalesced_page * PAGE_SIZE)

    def set_boot_cpu_id(self, vcpu_id: int) -> None:
        """KVM_SET_BOOT_CPU_ID: which vCPU is the bootstrap processor. Before any is created."""
        ioctl_int(self.fd, "KVM_SET_BOOT_CPU_ID", vcpu_id)

    def get_stats(self) -> dict[str, int | list[int]]:
        """KVM's counters of this VM, by KVM's names. Needs Cap.BINARY_STATS_FD."""
        from kvm_bindings.stats import read_stats

        return read_stats(self.fd)

    # ---- memory ----

    def set_user_memory_region(
        self,
        slot: int,
        guest_phys_addr: int,
        memory: mmap.mmap | memoryview | bytearray | None,
        flags: int = 0,
    ) -> None:
        """KVM_SET_USER_MEMORY_REGION: ``memory`` is the guest's at ``guest_phys_addr``; no copy.

        ``memory`` must be page-aligned and whole pages, as an mmap is; None deletes the slot.
        ``flags``: KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY. Until the slot is deleted or the VM
        closed, ``memory`` stays exported: an mmap cannot be closed under the guest's feet
        (BufferError).
        """
        region = ffi.new("struct kvm_userspace_memory_region *")
        region.slot, region.flags, region.guest_phys_addr = slot, flags, guest_phys_addr
        exported = None
        if memory is not None:
            writable = not flags & lib.KVM_MEM_READONLY
            exported = ffi.from_buffer("char[]", memory, require_writable=writable)
            region.memory_size = len(exported)
            region.userspace_addr = int(ffi.cast("uintptr_t", exported))
        try:
            ioctl_ptr(self.fd, "KVM_SET_USER_MEMORY_REGION", region)
        except BaseException:
            if exported is not None:
                ffi.release(exported)
            raise
        replaced = self._slots.pop(slot, None)
        if replaced is not None:
            ffi.release(replaced)
        if exported is not None:
            self._slots[slot] = exported

    def get_dirty_log(self, slot: int) -> bytes:
        """KVM_GET_DIRTY_LOG: a bit for each page of ``slot``, lowest first; 1 = written.

        The log starts anew with each call, unless Cap.MANUAL_DIRTY_LOG_PROTECT2 was enabled:
        then ``clear_dirty_log`` does that. Raises KeyError for a slot without memory.
        """
        pages = len(self._slots[slot]) // PAGE_SIZE
        bitmap = ffi.new("__u64[]", (pages + 63) // 64)
        log = ffi.new("struct kvm_dirty_log *", {"slot": slot})
        log.dirty_bitmap = bitmap
        ioctl_ptr(self.fd, "KVM_GET_DIRTY_LOG", log)
        return bytes(ffi.buffer(bitmap))

    def dirty_pages(self, slot: int) -> list[int]:
        """``get_dirty_log`` as ascending page numbers within the slot."""
        pages = []
        for index, word in enumerate(memoryview(self.get_dirty_log(slot)).cast("Q")):
            while word:
                lowest = word & -word
                pages.append(index * 64 + lowest.bit_length() - 1)
                word ^= lowest
        return pages

    def clear_dirty_log(self, slot: int, first_page: int, num_pages: int, bitmap: bytes) -> None:
        """KVM_CLEAR_DIRTY_LOG: log the pages with a 1 in ``bitmap`` anew.

        The bitmap's first bit is ``first_page``, a multiple of 64; ``num_pages`` is one too, or
        reaches the slot's end. Needs Cap.MANUAL_DIRTY_LOG_PROTECT2 enabled. Raises ValueError if
        the bitmap is shorter than ``num_pages`` bits.
        """
        if len(bitmap) * 8 < num_pages:
            raise ValueError(
                f"the bitmap has {len(bitmap)} bytes; {num_pages} pages need {(num_pages + 7) // 8}"
            )
        words = ffi.new("__u64[]", (num_pages + 63) // 64)
        ffi.memmove(words, bitmap, min(len(bitmap), ffi.sizeof(words)))
        log = ffi.new("struct kvm_clear_dirty_log *")
        log.slot, log.first_page, log.num_pages = slot, first_page, num_pages
        log.dirty_bitmap = words
        ioctl_ptr(self.fd, "KVM_CLEAR_DIRTY_LOG", log)

    def set_tss_addr(self, guest_phys_addr: int) -> None:
        """KVM_SET_TSS_ADDR: three pages below 4 GiB, outside all slots, that KVM on Intel uses."""
        ioctl_int(self.fd, "KVM_SET_TSS_ADDR", guest_phys_addr)

    def set_identity_map_addr(self, guest_phys_addr: int) -> None:
        """KVM_SET_IDENTITY_MAP_ADDR: one page below 4 GiB, likewise."""
        ioctl_ptr(self.fd, "KVM_SET_IDENTITY_MAP_ADDR", ffi.new("__u64 *", guest_phys_addr))

    # ---- interrupts ----

    def create_irqchip(self) -> None:
        """KVM_CREATE_IRQCHIP: PICs and IOAPIC in the kernel, a local APIC for each later vCPU."""
        ioctl_int(self.fd, "KVM_CREATE_IRQCHIP")

    def get_irqchip(self, chip_id: int) -> kvm_irqchip:
        """KVM_GET_IRQCHIP: the state of KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE or _IOAPIC."""
        irqchip = ffi.new("struct kvm_irqchip *", {"chip_id": chip_id})
        ioctl_ptr(self.fd, "KVM_GET_IRQCHIP", irqchip)
        return irqchip  # type: ignore[no-any-return]

    def set_irqchip(self, irqchip: kvm_irqchip) -> None:
        """KVM_SET_IRQCHIP: put back what ``get_irqchip`` gave."""
        ioctl_ptr(self.fd, "KVM_SET_IRQCHIP", irqchip)

    def irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE: raise (1) or lower (0) the line ``gsi``."""
        ioctl_ptr(
            self.fd, "KVM_IRQ_LINE", ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        )

    def irq_line_status(self, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE_STATUS: as ``irq_line``; how many vCPUs got it, 0 coalesced, -1 masked."""
        line = ffi.new("struct kvm_irq_level *", {"irq": gsi, "level": level})
        ioctl_ptr(self.fd, "KVM_IRQ_LINE_STATUS", line)
        return int(line.status)

    def set_gsi_routing(self, routes: Iterable[GsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING: where each GSI leads; replaces every earlier route."""
        from kvm_bindings.routing import set_gsi_routing

        set_gsi_routing(self.fd, routes)

    def signal_msi(self, address: int, data: int, devid: int | None = None) -> int:
        """KVM_SIGNAL_MSI: send one message now. Above 0: delivered; 0: the guest blocked it."""
        msi = ffi.new("struct kvm_msi *")
        msi.address_lo, msi.address_hi = address & 0xFFFF_FFFF, address >> 32
        msi.data = data
        if devid is not None:
            msi.flags, msi.devid = lib.KVM_MSI_VALID_DEVID, devid
        return ioctl_ptr(self.fd, "KVM_SIGNAL_MSI", msi)

    def irqfd(self, fd: int, gsi: int, resample_fd: int | None = None, assign: bool = True) -> None:
        """KVM_IRQFD: a write to the eventfd ``fd`` raises ``gsi``, without a system call of ours.

        Edge-triggered; with ``resample_fd``, level-triggered: the line stays up until the guest's
        EOI, which KVM reports by a write to that eventfd. ``assign=False`` takes it back.
        """
        irqfd = ffi.new("struct kvm_irqfd *", {"fd": fd, "gsi": gsi})
        if not assign:
            irqfd.flags |= lib.KVM_IRQFD_FLAG_DEASSIGN
        if resample_fd is not None:
            irqfd.flags |= lib.KVM_IRQFD_FLAG_RESAMPLE
            irqfd.resamplefd = resample_fd
        ioctl_ptr(self.fd, "KVM_IRQFD", irqfd)

    # ---- events that the guest causes ----

    def ioeventfd(
        self,
        fd: int,
        addr: int,
        length: int,
        datamatch: int | None = None,
        pio: bool = False,
        assign: bool = True,
    ) -> None:
        """KVM_IOEVENTFD: a guest's write to ``addr`` signals the eventfd ``fd``, with no exit.

        ``length``: of the writes that count, in bytes; 0 for any. ``datamatch``: only this value.
        ``pio``: ``addr`` is a port. ``assign=False``, with the same arguments, takes it back.
        """
        ioeventfd = ffi.new("struct kvm_ioeventfd *", {"fd": fd, "addr": addr, "len": length})
        if datamatch is not None:
            ioeventfd.flags |= lib.KVM_IOEVENTFD_FLAG_DATAMATCH
            ioeventfd.datamatch = datamatch
        if pio:
            ioeventfd.flags |= lib.KVM_IOEVENTFD_FLAG_PIO
        if not assign:
            ioeventfd.flags |= lib.KVM_IOEVENTFD_FLAG_DEASSIGN
        ioctl_ptr(self.fd, "KVM_IOEVENTFD", ioeventfd)

    def register_coalesced_zone(self, addr: int, size: int, pio: bool = False) -> None:
        """KVM_REGISTER_COALESCED_MMIO: writes to these addresses or ports queue up, with no exit.

        They are taken with ``Vcpu.take_coalesced``. ``pio`` needs Cap.COALESCED_PIO.
        """
        self._coalesced_zone("KVM_REGISTER_COALESCED_MMIO", addr, size, pio)

    def unregister_coalesced_zone(self, addr: int, size: int, pio: bool = False) -> None:
        """KVM_UNREGISTER_COALESCED_MMIO: every zone inside this range makes exits again."""
        self._coalesced_zone("KVM_UNREGISTER_COALESCED_MMIO", addr, size, pio)

    def set_msr_filter(
        self, ranges: Iterable[MsrFilterRange], *, default_deny: bool = False
    ) -> None:
        """KVM_X86_SET_MSR_FILTER: which MSR accesses KVM itself handles.

        Those denied make X86_RDMSR and X86_WRMSR exits if Cap.X86_USER_SPACE_MSR is enabled with
        KVM_MSR_EXIT_REASON_FILTER, else #GP in the guest. No ranges: everything is allowed.
        """
        from kvm_bindings.msrs import set_msr_filter

        set_msr_filter(self.fd, ranges, default_deny)

    # ---- time ----

    def create_pit2(self, flags: int = 0) -> None:
        """KVM_CREATE_PIT2: an i8254 in the kernel; KVM_PIT_SPEAKER_DUMMY answers port 0x61 too."""
        ioctl_ptr(self.fd, "KVM_CREATE_PIT2", ffi.new("struct kvm_pit_config *", {"flags": flags}))

    def get_pit2(self) -> kvm_pit_state2:
        """KVM_GET_PIT2: the PIT's three channels."""
        state = ffi.new("struct kvm_pit_state2 *")
        ioctl_ptr(self.fd, "KVM_GET_PIT2", state)
        return state  # type: ignore[no-any-return]

    def set_pit2(self, state: kvm_pit_state2) -> None:
        """KVM_SET_PIT2: put back what ``get_pit2`` gave."""
        ioctl_ptr(self.fd, "KVM_SET_PIT2", state)

    def set_pit_reinject(self, enabled: bool) -> None:
        """KVM_REINJECT_CONTROL: whether PIT ticks that the guest missed are made up for."""
        control = ffi.new("struct kvm_reinject_control *", {"pit_reinject": enabled})
        ioctl_ptr(self.fd, "KVM_REINJECT_CONTROL", control)

    def get_clock(self) -> kvm_clock_data:
        """KVM_GET_CLOCK: the guest's kvmclock in nanoseconds; ``flags`` says what else is valid."""
        data = ffi.new("struct kvm_clock_data *")
        ioctl_ptr(self.fd, "KVM_GET_CLOCK", data)
        return data  # type: ignore[no-any-return]

    def set_clock(self, clock_ns: int, realtime_ns: int | None = None) -> None:
        """KVM_SET_CLOCK: set kvmclock; with ``realtime_ns`` (when it had that value, on the host's
        CLOCK_REALTIME) KVM adds the time since then."""
        data = ffi.new("struct kvm_clock_data *", {"clock": clock_ns})
        if realtime_ns is not None:
            data.flags, data.realtime = lib.KVM_CLOCK_REALTIME, realtime_ns
        ioctl_ptr(self.fd, "KVM_SET_CLOCK", data)

    # ---- devices in the kernel ----

    def create_device(self, device_type: int, flags: int = 0) -> int:
        """KVM_CREATE_DEVICE: a file descriptor, which the caller closes.

        With the flag KVM_CREATE_DEVICE_TEST nothing is created: it only tells whether it could be.
        """
        device = ffi.new("struct kvm_create_device *", {"type": device_type, "flags": flags})
        ioctl_ptr(self.fd, "KVM_CREATE_DEVICE", device)
        return int(device.fd)

    def _coalesced_zone(self, name: str, addr: int, size: int, pio: bool) -> None:
        zone = ffi.new("struct kvm_coalesced_mmio_zone *")
        zone.addr, zone.size, zone.pio = addr, size, pio
        ioctl_ptr(self.fd, name, zone)
