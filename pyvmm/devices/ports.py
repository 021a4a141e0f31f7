"""The guest's I/O ports and interrupt lines: the one place where their numbers are written down.

0x0020 .. 0x0021   PIC, first                 in the kernel (KVM_CREATE_IRQCHIP)
0x0040 .. 0x0043   PIT                        in the kernel (KVM_CREATE_PIT2), or pyvmm.devices.pit
0x0060             i8042 data                 pyvmm.devices.i8042
0x0061             system control port B      where the PIT is
0x0064             i8042 status, command      pyvmm.devices.i8042
0x0070 .. 0x0071   CMOS RAM and RTC           pyvmm.devices.rtc
0x0080             POST code                  pyvmm.devices.scratch
0x00a0 .. 0x00a1   PIC, second                in the kernel
0x00ed             I/O delay                  pyvmm.devices.scratch
0x00f4 .. 0x00f7   debug exit                 pyvmm.devices.debug_exit
0x03f8 .. 0x03ff   COM1                       pyvmm.devices.serial
0x04d0 .. 0x04d1   PIC edge/level control     in the kernel
0x0505             pvpanic                    pyvmm.devices.pvpanic
0x0600 .. 0x0605   ACPI PM1 block             pyvmm.devices.power
0x0cf8 .. 0x0cff   PCI configuration          pyvmm.devices.pci_none

Where nothing else is named, the numbers are those of the IBM PC AT (Technical Reference,
March 1986, "I/O address map"), which every PC since has kept.
"""

from __future__ import annotations

PIT_BASE = 0x40
PIT_PORTS = 4
PIT_IRQ = 0
PORT_B = 0x61

# The i8042 has two ports; what lies between them is not its own.
I8042_BASE = 0x60
I8042_DATA_OFFSET = 0
I8042_COMMAND_OFFSET = 4
I8042_KBD_IRQ = 1

RTC_BASE = 0x70
RTC_PORTS = 2
RTC_IRQ = 8

POST_CODE_PORT = 0x80
# Linux writes here instead of to 0x80 if told so (arch/x86/kernel/io_delay.c, io_delay=0xed).
IO_DELAY_PORT = 0xED

# The default of QEMU's isa-debug-exit is 0x501; kernels' test suites have settled on 0xf4 with
# four ports (`-device isa-debug-exit,iobase=0xf4,iosize=0x04`).
DEBUG_EXIT_BASE = 0xF4
DEBUG_EXIT_PORTS = 4

COM1_BASE = 0x3F8
COM_PORTS = 8
COM1_IRQ = 4
# (base, IRQ) of ttyS0 to ttyS3. On the PC the third and fourth share the lines of the first two,
# which works on no bus of edges; a kernel is told of these lines by ACPI.
COM = ((COM1_BASE, COM1_IRQ), (0x2F8, 3), (0x3E8, 5), (0x2E8, 7))

# Where QEMU has it by default (docs/specs/pvpanic.rst). Guests are told by the DSDT.
PVPANIC_PORT = 0x505

# ACPI leaves the addresses to the FADT. This is where QEMU's machines have them, and where guests
# without ACPI tables have learnt to write 0x2000, to the control register, to power off.
PM1A_EVENT_PORT = 0x600
PM1A_EVENT_PORTS = 4
PM1A_CONTROL_PORT = 0x604
PM1A_CONTROL_PORTS = 2
PM1A_PORTS = PM1A_EVENT_PORTS + PM1A_CONTROL_PORTS
# The interrupt of the PM1 events, a level: 9 on most PCs since the PIIX4.
SCI_IRQ = 9

# PCI Local Bus Specification 3.0, 3.2.2.3.2: CONFIG_ADDRESS and CONFIG_DATA.
PCI_CONFIG_BASE = 0xCF8
PCI_CONFIG_PORTS = 8
