"""GSI routes: where an interrupt line (GSI) leads, for KVM_SET_GSI_ROUTING.

A GSI may lead to several pins (on a PC: PIC and IOAPIC), or to one MSI.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from kvm_bindings._abi import ffi, lib
from kvm_bindings._ioctl import ioctl_ptr


class IrqchipRoute(NamedTuple):
    """``gsi`` leads to pin ``pin`` of ``irqchip`` (KVM_IRQCHIP_PIC_MASTER, _PIC_SLAVE, _IOAPIC)."""

    gsi: int
    irqchip: int
    pin: int

    def fill(self, entry: Any) -> None:
        """Write it to a ``struct kvm_irq_routing_entry``."""
        entry.gsi, entry.type = self.gsi, lib.KVM_IRQ_ROUTING_IRQCHIP
        entry.u.irqchip.irqchip, entry.u.irqchip.pin = self.irqchip, self.pin


class MsiRoute(NamedTuple):
    """``gsi`` sends the message ``data`` to ``address`` (SDM 3A 11.11), ``devid`` where needed."""

    gsi: int
    address: int
    data: int
    devid: int | None = None

    def fill(self, entry: Any) -> None:
        """Write it to a ``struct kvm_irq_routing_entry``."""
        entry.gsi, entry.type = self.gsi, lib.KVM_IRQ_ROUTING_MSI
        entry.u.msi.address_lo = self.address & 0xFFFF_FFFF
        entry.u.msi.address_hi = self.address >> 32
        entry.u.msi.data = self.data
        if self.devid is not None:
            entry.flags = lib.KVM_MSI_VALID_DEVID
            entry.u.msi.devid = self.devid


GsiRoute = IrqchipRoute | MsiRoute


def set_gsi_routing(fd: int, routes: Iterable[GsiRoute]) -> None:
    """KVM_SET_GSI_ROUTING on the VM ``fd``: these routes and no others. Raises KvmError."""
    listed = list(routes)
    table = ffi.new("struct kvm_irq_routing *", {"nr": len(listed), "entries": len(listed)})
    for index, route in enumerate(listed):
        route.fill(table.entries[index])
    ioctl_ptr(fd, "KVM_SET_GSI_ROUTING", table)
