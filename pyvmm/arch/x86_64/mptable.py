"""The MP table: processors, buses and interrupts, for kernels that do without ACPI.

Without it (or ACPI's MADT) a kernel knows of no IOAPIC, and on some the timer never ticks.

What it tells: each CPU, one ISA bus, one IOAPIC, a wire from each ISA interrupt to the IOAPIC
pin of the same number (KVM's default routing), and LINT0/LINT1 of every local APIC.

Specification: Intel MultiProcessor Specification 1.4, chapter 4.
"""

from __future__ import annotations

import struct

from pyvmm.arch.x86_64 import layout

_FLOATING_POINTER = struct.Struct("<4sIBBBBB3x")  # 4.1
_HEADER = struct.Struct("<4sHBB8s12sIHHIHBx")  # 4.2
_PROCESSOR = struct.Struct("<BBBBII8x")  # 4.3.1
_BUS = struct.Struct("<BB6s")  # 4.3.2
_IOAPIC = struct.Struct("<BBBBI")  # 4.3.3
_INTERRUPT = struct.Struct("<BBHBBBB")  # 4.3.4 and 4.3.5, the same shape

_ENTRY_PROCESSOR, _ENTRY_BUS, _ENTRY_IOAPIC, _ENTRY_IO_INTERRUPT, _ENTRY_LOCAL_INTERRUPT = range(5)

_SPEC_REVISION = 4  # 1.4
_CPU_ENABLED = 1 << 0
_CPU_BOOTSTRAP = 1 << 1
_IOAPIC_ENABLED = 1 << 0
_INTERRUPT_INT, _INTERRUPT_NMI, _INTERRUPT_EXTINT = 0, 1, 3  # table 4-10
_CONFORMS_TO_BUS = 0  # polarity and trigger mode
_ALL_LOCAL_APICS = 0xFF

# Version registers of KVM's in-kernel chips (arch/x86/kvm/lapic.c, ioapic.h).
_LAPIC_VERSION = 0x14
_IOAPIC_VERSION = 0x11

_ISA_BUS_ID = 0
_ISA_INTERRUPTS = 16
_CASCADE = 2  # the second PIC's output: no device can raise it


def build(*, cpu_count: int, cpu_signature: int, cpu_features: int, base_gpa: int) -> bytes:
    """The floating pointer and the table behind it, to be placed at ``base_gpa``.

    ``cpu_signature`` and ``cpu_features`` are CPUID leaf 1's EAX and EDX.
    """
    entries = []
    for apic_id in range(cpu_count):
        flags = _CPU_ENABLED | (_CPU_BOOTSTRAP if apic_id == 0 else 0)
        entries.append(
            _PROCESSOR.pack(
                _ENTRY_PROCESSOR, apic_id, _LAPIC_VERSION, flags, cpu_signature, cpu_features
            )
        )
    ioapic_id = cpu_count
    entries.append(_BUS.pack(_ENTRY_BUS, _ISA_BUS_ID, b"ISA   "))
    entries.append(
        _IOAPIC.pack(_ENTRY_IOAPIC, ioapic_id, _IOAPIC_VERSION, _IOAPIC_ENABLED, layout.IOAPIC_GPA)
    )
    entries += [
        _INTERRUPT.pack(
            _ENTRY_IO_INTERRUPT, _INTERRUPT_INT, _CONFORMS_TO_BUS, _ISA_BUS_ID, irq, ioapic_id, irq
        )
        for irq in range(_ISA_INTERRUPTS)
        if irq != _CASCADE
    ]
    for lint, kind in enumerate((_INTERRUPT_EXTINT, _INTERRUPT_NMI)):
        entries.append(
            _INTERRUPT.pack(
                _ENTRY_LOCAL_INTERRUPT,
                kind,
                _CONFORMS_TO_BUS,
                _ISA_BUS_ID,
                0,
                _ALL_LOCAL_APICS,
                lint,
            )
        )
    body = b"".join(entries)
    table_gpa = base_gpa + _FLOATING_POINTER.size
    header_fields = [
        b"PCMP", _HEADER.size + len(body), _SPEC_REVISION, 0, b"PYVMM   ", b"MICROVM     ",
        0, 0, len(entries), layout.LAPIC_GPA, 0, 0,
    ]  # fmt: skip
    header_fields[3] = _checksum(_HEADER.pack(*header_fields) + body)
    pointer_fields = [b"_MP_", table_gpa, _FLOATING_POINTER.size // 16, _SPEC_REVISION, 0, 0, 0]
    pointer_fields[4] = _checksum(_FLOATING_POINTER.pack(*pointer_fields))
    return _FLOATING_POINTER.pack(*pointer_fields) + _HEADER.pack(*header_fields) + body


def _checksum(data: bytes) -> int:
    """The byte that makes all of ``data`` sum to zero."""
    return -sum(data) & 0xFF
