"""Tables and registers of x86-64, against the specifications' own numbers."""

from __future__ import annotations

import itertools
import struct

import pytest

from pyvmm.arch.x86_64 import bda, cpuid, gdt, lapic, layout, mptable, paging
from pyvmm.arch.x86_64.cpuid import Leaf


@pytest.mark.parametrize(
    ("segment", "descriptor"),
    [
        # The descriptors that arch/x86/include/asm/desc_defs.h makes, with the accessed bit set.
        (gdt.CODE64, 0x00AF_9B00_0000_FFFF),
        (gdt.CODE32, 0x00CF_9B00_0000_FFFF),
        (gdt.DATA, 0x00CF_9300_0000_FFFF),
        (gdt.TASK, 0x0000_8B00_0000_0067),
    ],
)
def test_descriptor_is_encoded(segment: gdt.Segment, descriptor: int) -> None:
    assert segment.descriptor() == descriptor


def test_descriptor_spreads_base_and_limit() -> None:
    segment = gdt.Segment(0x28, 0x1234_5678, 0x9_ABCD, 0x3, s=1, dpl=3, avl=1, db=0)
    # SDM 3A figure 3-8: base 31:24, flags, limit 19:16, access, base 23:0, limit 15:0
    assert segment.descriptor() == 0x12_19_F3_34_5678_ABCD


def test_gdt_has_the_boot_protocols_selectors() -> None:
    table = gdt.table(gdt.CODE64)
    assert struct.unpack_from("<Q", table, 0x10) == (gdt.CODE64.descriptor(),)
    assert struct.unpack_from("<Q", table, 0x18) == (gdt.DATA.descriptor(),)
    assert table[:8] == bytes(8)
    assert layout.GDT_GPA + len(table) <= layout.START_INFO_GPA


def walk(tables: bytes, base: int, address: int) -> int:
    """A page walk by the book (SDM 3A figure 4-9), over tables placed at ``base``."""

    def entry(table: int, index: int) -> int:
        value: int = struct.unpack_from("<Q", tables, table - base + index * 8)[0]
        assert value & 0b11 == 0b11
        return value

    pml4e = entry(base, address >> 39 & 0x1FF)
    pdpte = entry(pml4e & 0xF_FFFF_FFFF_F000, address >> 30 & 0x1FF)
    pde = entry(pdpte & 0xF_FFFF_FFFF_F000, address >> 21 & 0x1FF)
    assert pde & 0x80, "a 2 MiB page"
    return pde & 0xF_FFFF_FFE0_0000 | address & 0x1F_FFFF


@pytest.mark.parametrize("address", [0, 0x7000, 0x1F_FFFF, 0x20_0000, 0x100_0B53, 0xFFFF_FFFF])
def test_identity_map_maps_an_address_to_itself(address: int) -> None:
    tables = paging.identity_map(0x9000)
    assert len(tables) == paging.SIZE_BYTES == 6 * 4096
    assert walk(tables, 0x9000, address) == address


def test_identity_map_ends_at_4_gib() -> None:
    tables = paging.identity_map(0x9000)
    assert struct.unpack_from("<Q", tables, 0x1000 + 4 * 8) == (0,)
    assert struct.unpack_from("<Q", tables, 8) == (0,)


def test_low_memory_tables_do_not_overlap() -> None:
    extents = [
        (layout.GDT_GPA, len(gdt.table(gdt.CODE64))),
        (layout.START_INFO_GPA, layout.START_INFO_MAX_BYTES),
        (layout.BOOT_PARAMS_GPA, 4096),
        (layout.PAGE_TABLES_GPA, paging.SIZE_BYTES),
        (layout.SETUP_DATA_GPA, 64),
        (layout.CMDLINE_GPA, layout.CMDLINE_MAX_BYTES),
        (layout.EBDA_GPA, layout.EBDA_BYTES),
    ]
    for (base, size), (following, _) in itertools.pairwise(extents):
        assert base + size <= following
    assert sum(extents[-1]) == layout.LEGACY_HOLE_GPA


SUPPORTED = [
    Leaf(0x0, 0, 0, 0x20, 0x756E_6547, 0x6C65_746E, 0x4965_6E69),
    Leaf(0x1, 0, 0, 0x000A_0F11, 0x0302_0800, 0x0000_0008, 0x1000_0001),
    Leaf(0x4, 0, 1, 0xFC00_4121, 0x01C0_003F, 0x3F, 0),
    Leaf(0x4, 3, 1, 0xFC01_C163, 0x02C0_003F, 0xFFFF, 0),
    Leaf(0x4, 4, 1, 0, 0, 0, 0),
    Leaf(0xA, 0, 0, 0x0830_0805, 0, 0, 0x603),
    Leaf(0xB, 0, 1, 1, 2, 0x100, 3),
    Leaf(0xB, 1, 1, 7, 64, 0x201, 3),
    Leaf(0x1F, 0, 1, 1, 2, 0x100, 3),
    Leaf(0x4000_0000, 0, 0, 0x4000_0001, 0x4B4D_564B, 0x564B_4D56, 0x4D),
    Leaf(0x8000_0001, 0, 0, 0, 0, 0x0180_0002, 0),
    Leaf(0x8000_0008, 0, 0, 0x3030, 0, 0x703F, 0),
    Leaf(0x8000_001E, 0, 0, 3, 0x0101, 0x0102, 0),
]


def guest(
    apic_id: int = 0,
    cpu_count: int = 1,
    tsc_deadline: bool = True,
    supported: list[Leaf] | None = None,
    emulated: bool = False,
) -> dict[tuple[int, int], Leaf]:
    leaves = cpuid.guest_leaves(
        supported or SUPPORTED,
        apic_id=apic_id,
        cpu_count=cpu_count,
        tsc_deadline=tsc_deadline,
        emulated=emulated,
    )
    table = {(leaf.function, leaf.index): leaf for leaf in leaves}
    assert len(table) == len(leaves), "a leaf is answered twice"
    return table


def test_cpuid_says_hypervisor_and_keeps_kvms_leaves() -> None:
    table = guest()
    assert table[0x1, 0].ecx >> 31 == 1
    assert table[0x4000_0000, 0] == SUPPORTED[9]


@pytest.mark.parametrize("tsc_deadline", [True, False])
def test_cpuid_tsc_deadline_follows_the_capability(tsc_deadline: bool) -> None:
    assert guest(tsc_deadline=tsc_deadline)[0x1, 0].ecx >> 24 & 1 == tsc_deadline


def test_cpuid_tells_the_frequency_of_the_tsc_where_it_is_known() -> None:
    leaves = cpuid.guest_leaves(
        SUPPORTED, apic_id=0, cpu_count=1, tsc_deadline=True, tsc_khz=2_596_136
    )
    table = {leaf.function: leaf for leaf in leaves}
    assert table[0x4000_0010][3:5] == (2_596_136, 1_000_000)
    assert table[0x4000_0000].eax == 0x4000_0010
    assert (0x4000_0010, 0) not in guest()


_KVM_FEATURES = Leaf(0x4000_0001, 0, 0, 0x0100_7EFB | 1 << 16, 0, 0, 0)


def test_cpuid_where_kernel_mode_is_emulated_has_nothing_that_leads_to_hypercalls() -> None:
    table = guest(supported=[*SUPPORTED, _KVM_FEATURES], emulated=True)
    # Documentation/virt/kvm/x86/cpuid.rst: gone are PV_UNHALT, PV_SEND_IPI, PV_SCHED_YIELD and
    # HC_MAP_GPA_RANGE.
    kept = {0, 1, 3, 4, 5, 6, 9, 10, 12, 14, 24}
    assert {bit for bit in range(32) if table[0x4000_0001, 0].eax >> bit & 1} == kept


def test_cpuid_where_kernel_mode_is_emulated_has_no_cmpxchg16b() -> None:
    supported = [
        leaf._replace(ecx=leaf.ecx | 1 << 13) if leaf.function == 1 else leaf for leaf in SUPPORTED
    ]
    assert guest(supported=supported, emulated=True)[0x1, 0].ecx >> 13 & 1 == 0


def test_cpuid_where_hardware_runs_kernel_mode_is_not_less() -> None:
    supported = [
        *(
            leaf._replace(ecx=leaf.ecx | 1 << 13) if leaf.function == 1 else leaf
            for leaf in SUPPORTED
        ),
        _KVM_FEATURES,
    ]
    table = guest(supported=supported)
    assert table[0x1, 0].ecx >> 13 & 1 == 1
    assert table[0x4000_0001, 0] == _KVM_FEATURES


@pytest.mark.parametrize(("function", "bit"), [(0x1, 5), (0x8000_0001, 2)])
def test_cpuid_that_offers_vmx_or_svm_offers_virtualization(function: int, bit: int) -> None:
    assert cpuid.offers_virtualization([Leaf(function, 0, 0, 0, 0, 1 << bit, 0)])


@pytest.mark.parametrize(("function", "bit"), [(0x1, 2), (0x8000_0001, 5), (0x7, 5)])
def test_cpuid_of_other_bits_offers_no_virtualization(function: int, bit: int) -> None:
    assert not cpuid.offers_virtualization([Leaf(function, 0, 0, 0, 0, 1 << bit, 0)])


def test_cpuid_has_no_monitor() -> None:
    assert guest()[0x1, 0].ecx & 1 << 3 == 0


@pytest.mark.parametrize("apic_id", [0, 1, 3])
def test_cpuid_apic_id_is_the_same_in_every_leaf(apic_id: int) -> None:
    table = guest(apic_id, 4)
    assert table[0x1, 0].ebx >> 24 == apic_id
    assert {table[function, i].edx for function in (0xB, 0x1F) for i in range(3)} == {apic_id}
    assert table[0x8000_001E, 0].eax == apic_id
    assert table[0x8000_001E, 0].ebx == apic_id  # core id, one thread per core


def test_cpuid_counts_the_guests_processors_not_the_hosts() -> None:
    table = guest(0, 4)
    assert table[0x1, 0].ebx >> 16 & 0xFF == 4
    assert table[0x1, 0].edx >> 28 & 1 == 1
    assert (table[0xB, 0].eax, table[0xB, 0].ebx) == (0, 1)
    assert (table[0xB, 1].eax, table[0xB, 1].ebx) == (2, 4)
    assert table[0xB, 2].ecx >> 8 & 0xFF == 0  # level type "invalid" ends the list
    assert table[0x8000_0008, 0].ecx & 0xFF == 3
    assert table[0x8000_0008, 0].ecx >> 12 & 0xF == 2
    assert table[0x4, 3].eax >> 14 & 0xFFF == 3  # the last-level cache is shared by four
    assert table[0x4, 0].eax >> 14 & 0xFFF == 0  # the first level by none
    assert table[0x4, 0].eax >> 26 == 3


def test_cpuid_of_one_processor_is_not_multithreaded() -> None:
    table = guest()
    assert table[0x1, 0].edx >> 28 & 1 == 0
    assert table[0x8000_0001, 0].ecx & 1 << 1 == 0


def test_cpuid_has_no_pmu() -> None:
    table = guest()
    assert table[0xA, 0][3:] == (0, 0, 0, 0)
    assert table[0x8000_0001, 0].ecx & (1 << 23 | 1 << 24) == 0


def test_cpuid_topology_leaf_beyond_the_highest_is_left_out() -> None:
    supported = [SUPPORTED[0]._replace(eax=0xD), *SUPPORTED[1:]]
    leaves = cpuid.guest_leaves(supported, apic_id=0, cpu_count=1, tsc_deadline=False)
    assert 0x1F not in {leaf.function for leaf in leaves}


def test_lapic_pins_are_wired_as_on_a_pc() -> None:
    registers = bytearray(0x400)
    registers[0x350:0x354] = registers[0x360:0x364] = b"\0\0\1\0"  # masked, as after reset
    lapic.wire_local_interrupts(registers)
    assert registers[0x350:0x354] == struct.pack("<I", 0x700)
    assert registers[0x360:0x364] == struct.pack("<I", 0x400)
    assert sum(registers) == 7 + 4


@pytest.mark.parametrize("cpu_count", [1, 2, 8])
def test_mptable_is_as_the_specification_says(cpu_count: int) -> None:
    data = mptable.build(
        cpu_count=cpu_count, cpu_signature=0x000A_0F11, cpu_features=0x201, base_gpa=0x9FC00
    )
    pointer, table = data[:16], data[16:]
    assert pointer[:4] == b"_MP_"
    assert struct.unpack_from("<I", pointer, 4) == (0x9FC10,)
    assert pointer[8:10] == b"\x01\x04"
    assert sum(pointer) & 0xFF == 0
    assert table[:4] == b"PCMP"
    assert struct.unpack_from("<H", table, 4) == (len(table),)
    assert sum(table) & 0xFF == 0
    assert struct.unpack_from("<I", table, 36) == (0xFEE0_0000,)
    assert len(data) <= layout.EBDA_BYTES

    kinds: list[int] = []
    offset = 44
    while offset < len(table):
        kinds.append(table[offset])
        offset += 20 if table[offset] == 0 else 8  # MP 1.4 table 4-3
    assert offset == len(table)
    assert struct.unpack_from("<H", table, 34) == (len(kinds),)
    assert kinds == [0] * cpu_count + [1, 2] + [3] * 15 + [4, 4]


def test_mptable_first_processor_is_the_bootstrap_one() -> None:
    data = mptable.build(cpu_count=2, cpu_signature=0, cpu_features=0, base_gpa=0x9FC00)
    first, second = data[60:80], data[80:100]
    assert (first[1], first[3]) == (0, 0b11)
    assert (second[1], second[3]) == (1, 0b01)


def test_bios_data_area_has_ports_and_base_memory() -> None:
    area = bda.build([0x3F8, 0, 0x3E8])
    assert len(area) == 256
    assert struct.unpack_from("<4H", area, 0x00) == (0x3F8, 0, 0x3E8, 0)  # 0040:0000
    assert struct.unpack_from("<H", area, 0x0E) == (0x9FC0,)  # 0040:000E, the EBDA's segment
    assert struct.unpack_from("<H", area, 0x13) == (639,)  # 0040:0013, KiB
