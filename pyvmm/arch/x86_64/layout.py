"""The guest's physical address map: the one place where its addresses are written down.

0x0000_0000  +--------------------------------+
             | real-mode vectors              |  for Multiboot; else zero
0x0000_0400  | BDA                            |
0x0000_0500  | GDT                            |
0x0000_0600  | BIOS stub                      |  where the vectors lead
0x0000_6000  | start_info, PVH memory map,    |  what PVH hands to the kernel, or
             | module list                    |  Multiboot's information
0x0000_7000  | boot_params: the "zero page"   |  what the Linux protocols hand over
0x0000_8000  | boot stack, grows down         |
0x0000_9000  | page tables: PML4, PDPT, 4 PDs |  identity map of the first 4 GiB
0x0001_0000  | setup_data                     |  more for the Linux protocols: a seed
0x0002_0000  | command line, at most 64 KiB   |
0x0009_fc00  | EBDA: MP table (1 KiB)         |  reserved in the memory map
0x000a_0000  | VGA and ROM area               |  reserved in the memory map
0x000e_0000  | ACPI tables                    |  where kernels look for the RSDP
0x0010_0000  +--------------------------------+  HIMEM: kernels and initrds go above this
             | RAM                            |
0xc000_0000  +--------------------------------+  the 32-bit gap: no RAM
0xfec0_0000  | IOAPIC                         |
0xfee0_0000  | local APICs                    |
0xfffb_c000  | identity map page (Intel)      |  KVM's own, see api.rst
0xfffb_d000  | TSS, 3 pages (Intel)           |
0x1_0000_0000+--------------------------------+
             | the rest of RAM                |
             +--------------------------------+
"""

from __future__ import annotations

from pyvmm.units import GiB, KiB

REAL_MODE_VECTORS_GPA = 0x0000_0000
BDA_GPA = 0x0000_0400
GDT_GPA = 0x0000_0500
BIOS_STUB_GPA = 0x0000_0600
START_INFO_GPA = 0x0000_6000
START_INFO_MAX_BYTES = 4 * KiB
BOOT_PARAMS_GPA = 0x0000_7000
BOOT_STACK_TOP_GPA = 0x0000_9000
PAGE_TABLES_GPA = 0x0000_9000
SETUP_DATA_GPA = 0x0001_0000
SETUP_DATA_MAX_BYTES = 64 * KiB
CMDLINE_GPA = 0x0002_0000
CMDLINE_MAX_BYTES = 64 * KiB

# The MP floating pointer is looked for in the last KiB of base memory, 639 KiB
# (MultiProcessor Specification 1.4, chapter 4), which is where an EBDA stands on a PC.
EBDA_GPA = 0x0009_FC00
EBDA_BYTES = 1 * KiB
MPTABLE_GPA = EBDA_GPA

LEGACY_HOLE_GPA = 0x000A_0000
# The RSDP is looked for from 0xE0000 to 0xFFFFF (ACPI 6.5, 5.2.5.1).
ACPI_GPA = 0x000E_0000
ACPI_MAX_BYTES = 128 * KiB
HIMEM_GPA = 0x0010_0000

GAP_BASE = 0xC000_0000
GAP_END = 4 * GiB

IOAPIC_GPA = 0xFEC0_0000  # 82093AA datasheet, 3.0
LAPIC_GPA = 0xFEE0_0000  # SDM 3A 11.4.1

# KVM on Intel needs four pages below 4 GiB that no RAM slot covers
# (Documentation/virt/kvm/api.rst, KVM_SET_TSS_ADDR and KVM_SET_IDENTITY_MAP_ADDR).
IDENTITY_MAP_GPA = 0xFFFB_C000
TSS_GPA = 0xFFFB_D000
