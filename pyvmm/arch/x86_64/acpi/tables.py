"""The ACPI tables: processors, interrupts, power, and the way to the DSDT.

    RSDP --> XSDT --> FADT --> FACS
                 |        `--> DSDT   the devices, in AML: dsdt.py
                 `--> MADT            local APICs and the IOAPIC

A kernel gets the RSDP's address from boot_params or start_info, or finds it by looking for its
signature in the BIOS area (ACPI 6.5, 5.2.5.1).

The machine has the fixed hardware of a PC, a PM1 block (pyvmm.devices.power), and is not
"hardware-reduced": Linux takes a hardware-reduced machine to be without PIC, PIT and RTC
(acpi_generic_reduced_hw_init in arch/x86/kernel/acpi/boot.c), but calibrates its clocks by them. It
is always in ACPI mode: an SMI command port of 0 says that there is no other.

Left out: the RSDT, which only ACPI 1.0 needs; the PM timer, which is optional (4.8.3.3) and would
cost an exit for each look at the clock; GPEs; sleep states other than S5.

Specification: ACPI 6.5, chapter 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pyvmm.arch.x86_64 import layout
from pyvmm.arch.x86_64.acpi.dsdt import dsdt_body
from pyvmm.devices import ports
from pyvmm.devices.rtc import CENTURY
from pyvmm.errors import ConfigError
from pyvmm.units import align_up

if TYPE_CHECKING:
    from pyvmm.arch.x86_64.acpi.dsdt import SerialPort, VirtioMmio

_HEADER = struct.Struct("<4sIBB6s8sI4sI")  # 5.2.6
_RSDP = struct.Struct("<8sB6sBIIQB3x")  # 5.2.5.3
_RSDP_ACPI1_BYTES = 20  # as far as the first of its checksums goes
_RSDP_ALIGNMENT = 16  # 5.2.5.1
_FACS_ALIGNMENT = 64  # 5.2.10
_TABLE_ALIGNMENT = 16

_OEM_ID = b"PYVMM "
_OEM_TABLE_ID = b"MICROVM "
_OEM_REVISION = 1
_CREATOR_ID = b"PYVM"
_CREATOR_REVISION = 1

_RSDP_REVISION = 2
_XSDT_REVISION = 1
_FACS_VERSION = 2
_FADT_REVISION, _FADT_MINOR_REVISION = 6, 5
_MADT_REVISION = 6
_DSDT_REVISION = 2  # and so integers of 64 bits

_GAS = struct.Struct("<BBBBQ")  # 5.2.3.2
_SYSTEM_IO = 1
_BYTE_ACCESS, _WORD_ACCESS = 1, 2

# Fixed feature flags (5.2.9).
_WBINVD = 1 << 0
_PROC_C1 = 1 << 2  # HLT works on all processors; required
_SLP_BUTTON = 1 << 5  # the sleep button is no fixed one; there is none
_FIX_RTC = 1 << 6  # the RTC does not wake the machine by way of the fixed registers
_RESET_REG_SUP = 1 << 10
# PWR_BUTTON (bit 4) is 0: the power button is in the fixed registers.

# Boot architecture flags (5.2.9.3).
_LEGACY_DEVICES = 1 << 0
_VGA_NOT_PRESENT = 1 << 2
# 8042 (bit 1) is 0: with nothing plugged in, Linux need not look. Its reset works all the same.

# Latencies above 100 and 1000 us say that there is no such state (5.2.9).
_NO_C2_LATENCY = 100 + 1
_NO_C3_LATENCY = 1000 + 1

_RESET_VALUE = 0xFE  # the i8042's command that pulses the CPU's reset line

_PCAT_COMPAT = 1 << 0  # there are two 8259s as well (5.2.12)

# The MADT's entries: each begins with its type and its length.
_LOCAL_APIC = struct.Struct("<BBBBI")  # 5.2.12.2
_IO_APIC = struct.Struct("<BBBxII")  # 5.2.12.3
_INTERRUPT_SOURCE_OVERRIDE = struct.Struct("<BBBBIH")  # 5.2.12.5
_LOCAL_APIC_NMI = struct.Struct("<BBBHB")  # 5.2.12.7
_LOCAL_X2APIC = struct.Struct("<BBxxIII")  # 5.2.12.12
_LOCAL_X2APIC_NMI = struct.Struct("<BBHIB3x")  # 5.2.12.13
_APIC_ENABLED = 1 << 0
_XAPIC_IDS = 0xFF  # 255 is the broadcast id: APICs from there on are told of as x2APICs
_ISA_BUS = 0
_LEVEL_ACTIVE_HIGH = 3 << 2 | 1
_CONFORMS_TO_BUS = 0
_ALL_PROCESSORS = 0xFF
_ALL_X2APIC_PROCESSORS = 0xFFFF_FFFF
_NMI_LINT = 1
# What the id register of KVM's IOAPIC says (kvm_ioapic_reset in arch/x86/kvm/ioapic.c). That it
# is a CPU's as well does not matter: xAPICs have the system bus for themselves.
_IOAPIC_ID = 0


def build(
    *,
    base_gpa: int,
    max_bytes: int,
    cpu_count: int,
    serial_ports: Iterable[SerialPort],
    virtio_mmio: Iterable[VirtioMmio] = (),
) -> bytes:
    """All the tables, to be placed at ``base_gpa``, where the RSDP is.

    The memory must stay theirs (not RAM in the memory map), and be writable: the FACS is.
    ``serial_ports`` are (base port, IRQ), ``virtio_mmio`` (base address, size, GSI).

    Raises ConfigError if that takes more than ``max_bytes``.
    """
    if base_gpa % _RSDP_ALIGNMENT:
        raise ValueError(f"ACPI tables at {base_gpa:#x}; expected a multiple of {_RSDP_ALIGNMENT}")
    blob = bytearray(_RSDP.size)

    def place(table: bytes, alignment: int = _TABLE_ALIGNMENT) -> int:
        """Put ``table`` behind all that is there, and say at which address that is."""
        gpa = align_up(base_gpa + len(blob), alignment)
        blob.extend(bytes(gpa - base_gpa - len(blob)))
        blob.extend(table)
        return gpa

    facs_gpa = place(_facs(), _FACS_ALIGNMENT)
    dsdt_gpa = place(
        _table(b"DSDT", _DSDT_REVISION, dsdt_body(cpu_count, serial_ports, virtio_mmio))
    )
    fadt_gpa = place(_table(b"FACP", _FADT_REVISION, _fadt_body(facs_gpa, dsdt_gpa)))
    madt_gpa = place(_table(b"APIC", _MADT_REVISION, _madt_body(cpu_count)))
    xsdt_gpa = place(_table(b"XSDT", _XSDT_REVISION, struct.pack("<2Q", fadt_gpa, madt_gpa)))
    blob[: _RSDP.size] = _rsdp(xsdt_gpa)
    if len(blob) > max_bytes:
        raise ConfigError(
            f"ACPI tables for {cpu_count} CPUs take {len(blob)} bytes; expected at most "
            f"{max_bytes}; use fewer CPUs or devices"
        )
    return bytes(blob)


def _rsdp(xsdt_gpa: int) -> bytes:
    """The root pointer: one checksum over what ACPI 1.0 had of it, one over all."""
    fields = [b"RSD PTR ", 0, _OEM_ID, _RSDP_REVISION, 0, _RSDP.size, xsdt_gpa, 0]
    fields[1] = _checksum(_RSDP.pack(*fields)[:_RSDP_ACPI1_BYTES])
    fields[7] = _checksum(_RSDP.pack(*fields))
    return _RSDP.pack(*fields)


def _table(signature: bytes, revision: int, body: bytes) -> bytes:
    """``body`` behind the header that every table has, but the RSDP and the FACS."""
    fields = [
        signature, _HEADER.size + len(body), revision, 0,
        _OEM_ID, _OEM_TABLE_ID, _OEM_REVISION, _CREATOR_ID, _CREATOR_REVISION,
    ]  # fmt: skip
    fields[3] = _checksum(_HEADER.pack(*fields) + body)
    return _HEADER.pack(*fields) + body


def _facs() -> bytes:
    """What firmware and kernel share (5.2.10): a waking vector and a lock, of no use here.

    Without it a kernel complains, except on a hardware-reduced machine.
    """
    return struct.pack("<4s7IB31x", b"FACS", 64, 0, 0, 0, 0, 0, 0, _FACS_VERSION)


def _fadt_body(facs_gpa: int, dsdt_gpa: int) -> bytes:
    """The fixed hardware (5.2.9). Addresses are told twice, in 32 bits and in 64.

    But not the FACS's: told of two, Linux takes them for two tables (acpi_tb_parse_fadt).
    """
    event = _io_address(ports.PM1A_EVENT_PORT, ports.PM1A_EVENT_PORTS, _WORD_ACCESS)
    control = _io_address(ports.PM1A_CONTROL_PORT, ports.PM1A_CONTROL_PORTS, _WORD_ACCESS)
    reset = _io_address(ports.I8042_BASE + ports.I8042_COMMAND_OFFSET, 1, _BYTE_ACCESS)
    none = bytes(_GAS.size)
    flags = _WBINVD | _PROC_C1 | _SLP_BUTTON | _FIX_RTC | _RESET_REG_SUP
    pack = struct.pack
    return b"".join((
        pack("<II", facs_gpa, dsdt_gpa),
        pack("<xB", 0),  # Preferred_PM_Profile: unspecified
        pack("<HI", ports.SCI_IRQ, 0),  # SCI_INT, SMI_CMD
        pack("<4B", 0, 0, 0, 0),  # ACPI_ENABLE, ACPI_DISABLE, S4BIOS_REQ, PSTATE_CNT
        pack("<II", ports.PM1A_EVENT_PORT, 0),  # PM1a_EVT_BLK, PM1b_EVT_BLK
        pack("<II", ports.PM1A_CONTROL_PORT, 0),  # PM1a_CNT_BLK, PM1b_CNT_BLK
        pack("<4I", 0, 0, 0, 0),  # PM2_CNT_BLK, PM_TMR_BLK, GPE0_BLK, GPE1_BLK
        pack("<BB", ports.PM1A_EVENT_PORTS, ports.PM1A_CONTROL_PORTS),  # PM1_EVT_LEN, PM1_CNT_LEN
        pack("<BBBB", 0, 0, 0, 0),  # PM2_CNT_LEN, PM_TMR_LEN, GPE0_BLK_LEN, GPE1_BLK_LEN
        pack("<BB", 0, 0),  # GPE1_BASE, CST_CNT
        pack("<HH", _NO_C2_LATENCY, _NO_C3_LATENCY),  # P_LVL2_LAT, P_LVL3_LAT
        pack("<HHBB", 0, 0, 0, 0),  # FLUSH_SIZE, FLUSH_STRIDE, DUTY_OFFSET, DUTY_WIDTH
        pack("<BBB", 0, 0, CENTURY),  # DAY_ALRM, MON_ALRM, CENTURY: indices into CMOS RAM
        pack("<Hx", _LEGACY_DEVICES | _VGA_NOT_PRESENT),  # IAPC_BOOT_ARCH
        pack("<I", flags),
        reset,
        pack("<B", _RESET_VALUE),
        pack("<HB", 0, _FADT_MINOR_REVISION),  # ARM_BOOT_ARCH, FADT Minor Version
        pack("<QQ", 0, dsdt_gpa),  # X_FIRMWARE_CTRL, X_DSDT
        event, none,  # X_PM1a_EVT_BLK, X_PM1b_EVT_BLK
        control, none,  # X_PM1a_CNT_BLK, X_PM1b_CNT_BLK
        none, none, none, none,  # X_PM2_CNT_BLK, X_PM_TMR_BLK, X_GPE0_BLK, X_GPE1_BLK
        none, none,  # SLEEP_CONTROL_REG, SLEEP_STATUS_REG
        pack("<8s", _OEM_ID.rstrip()),  # Hypervisor Vendor Identity
    ))  # fmt: skip


def _io_address(port: int, size: int, access: int) -> bytes:
    """A Generic Address Structure for ``size`` ports."""
    return _GAS.pack(_SYSTEM_IO, 8 * size, 0, access, port)


def _madt_body(cpu_count: int) -> bytes:
    """Processors and interrupts (5.2.12). A CPU's APIC id and its uid are both its number.

    ISA interrupts are wired to the IOAPIC pins of the same numbers, as is KVM's default. That
    goes without saying, but for the SCI: what ISA has as an edge is a level there.
    """
    entries = [
        struct.pack("<II", layout.LAPIC_GPA, _PCAT_COMPAT),
        *(
            _LOCAL_APIC.pack(0, _LOCAL_APIC.size, number, number, _APIC_ENABLED)
            for number in range(min(cpu_count, _XAPIC_IDS))
        ),
        *(
            _LOCAL_X2APIC.pack(9, _LOCAL_X2APIC.size, number, _APIC_ENABLED, number)
            for number in range(_XAPIC_IDS, cpu_count)
        ),
        _IO_APIC.pack(1, _IO_APIC.size, _IOAPIC_ID, layout.IOAPIC_GPA, 0),
        _INTERRUPT_SOURCE_OVERRIDE.pack(
            2, _INTERRUPT_SOURCE_OVERRIDE.size,
            _ISA_BUS, ports.SCI_IRQ, ports.SCI_IRQ, _LEVEL_ACTIVE_HIGH,
        ),
        _LOCAL_APIC_NMI.pack(
            4, _LOCAL_APIC_NMI.size, _ALL_PROCESSORS, _CONFORMS_TO_BUS, _NMI_LINT
        ),
    ]  # fmt: skip
    if cpu_count > _XAPIC_IDS:
        entries.append(_LOCAL_X2APIC_NMI.pack(
            10, _LOCAL_X2APIC_NMI.size, _CONFORMS_TO_BUS, _ALL_X2APIC_PROCESSORS, _NMI_LINT
        ))  # fmt: skip
    return b"".join(entries)


def _checksum(data: bytes) -> int:
    """The byte that makes all of ``data`` sum to zero."""
    return -sum(data) & 0xFF
