"""The DSDT: the devices that a kernel cannot find by itself, and the sleep states.

In ASL it would read

    Name (_S5, Package () {0, 0, 0, 0})
    Scope (_SB)
    {
        Device (C000) { Name (_HID, "ACPI0007") ... }             each CPU
        Device (COM1) { Name (_HID, EisaId ("PNP0501")) ... }     each UART
        Device (RTC)  { Name (_HID, EisaId ("PNP0B00")) ... }
        Device (PEVT) { Name (_HID, "QEMU0001") ... }             pvpanic
        Device (VR00) { Name (_HID, "LNRO0005") ... }             each virtio-mmio device
    }

There is no PCI host bridge, since there is no PCI. The power button is a fixed one, which the FADT
tells of; the i8042 is left out, since nothing is plugged into it.

Specification: ACPI 6.5, 5.2.11.1 (DSDT), 7.4.2 (_S5), 8.4 (processor devices);
QEMU's docs/specs/pvpanic.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyvmm.arch.x86_64.acpi.aml import (
    arg,
    byte_field,
    device,
    eisa_id,
    integer,
    interrupt,
    io_port,
    io_region,
    irq_no_flags,
    memory32_fixed,
    method,
    name,
    name_string,
    package,
    resource_template,
    return_,
    scope,
    store,
    string,
)
from pyvmm.devices import ports
from pyvmm.devices.power import S5_SLP_TYP

SerialPort = tuple[int, int]
"""A UART: its base port, and its ISA interrupt."""

VirtioMmio = tuple[int, int, int]
"""A virtio-mmio device: its base address, its size in bytes, and its GSI."""

_STA_WORKS = 0xF  # 6.3.7: present, enabled, shown, functioning


def dsdt_body(
    cpu_count: int, serial_ports: Iterable[SerialPort], virtio_mmio: Iterable[VirtioMmio]
) -> bytes:
    """The AML that follows the DSDT's header. A CPU's _UID is its number, as in the MADT."""
    return (
        # SLP_TYP for the PM1a and PM1b control registers; two reserved.
        name("_S5", package(integer(S5_SLP_TYP), integer(S5_SLP_TYP), integer(0), integer(0)))
        + scope(
            "_SB",
            *(_processor(number) for number in range(cpu_count)),
            *(_serial(number, *port) for number, port in enumerate(serial_ports, start=1)),
            _rtc(),
            _pvpanic(),
            *(_virtio_mmio(number, *each) for number, each in enumerate(virtio_mmio)),
        )
    )


def _processor(number: int) -> bytes:
    return device(f"C{number:03X}", name("_HID", string("ACPI0007")), name("_UID", integer(number)))


def _serial(number: int, base: int, irq: int) -> bytes:
    resources = resource_template(io_port(base, ports.COM_PORTS), irq_no_flags(irq))
    return device(
        f"COM{number}",
        name("_HID", eisa_id("PNP0501")),  # 16550A-compatible
        name("_UID", integer(number)),
        name("_CRS", resources),
    )


def _rtc() -> bytes:
    resources = resource_template(
        io_port(ports.RTC_BASE, ports.RTC_PORTS), irq_no_flags(ports.RTC_IRQ)
    )
    return device("RTC", name("_HID", eisa_id("PNP0B00")), name("_CRS", resources))


def _pvpanic() -> bytes:
    """The port itself, which Linux's driver takes, and the methods that the specification has."""
    return device(
        "PEVT",
        name("_HID", string("QEMU0001")),
        name("_STA", integer(_STA_WORKS)),
        name("_CRS", resource_template(io_port(ports.PVPANIC_PORT, 1))),
        io_region("PEOR", ports.PVPANIC_PORT, 1),
        byte_field("PEOR", ("PEPT", 8)),
        method("RDPT", 0, return_(name_string("PEPT"))),
        method("WRPT", 1, store(arg(0), name_string("PEPT"))),
    )


def _virtio_mmio(number: int, base: int, size_bytes: int, gsi: int) -> bytes:
    """The interrupt is an edge, because that is what an irqfd makes.

    Linux takes what is said here, and looks into InterruptStatus at each interrupt
    (drivers/virtio/virtio_mmio.c).
    """
    resources = resource_template(memory32_fixed(base, size_bytes), interrupt(gsi, edge=True))
    return device(
        f"VR{number:02X}",
        name("_HID", string("LNRO0005")),
        name("_UID", integer(number)),
        name("_CRS", resources),
    )
