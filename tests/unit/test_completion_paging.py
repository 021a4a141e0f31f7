"""The walk through the guest's page tables: SDM 3A 4.2 to 4.8. One fault each."""

from __future__ import annotations

import pytest

from pyvmm.completion.paging_walk import Access, Translation, Update, Walker
from pyvmm.completion.state import Fault, Segment, State

P, RW, US, A, D, PS, NX = 1 << 0, 1 << 1, 1 << 2, 1 << 5, 1 << 6, 1 << 7, 1 << 63
ALL = P | RW | US
CR0_WP, CR0_PG = 1 << 16, 1 << 31
CR4_PSE, CR4_PAE, CR4_LA57, CR4_SMEP, CR4_SMAP = 1 << 4, 1 << 5, 1 << 12, 1 << 20, 1 << 21
EFER_LMA, EFER_NXE = 1 << 10, 1 << 11
RFLAGS_AC = 1 << 18

# Error codes: SDM 3A figure 4-12
PRESENT, WRITE, USER, RESERVED, FETCH = 1, 2, 4, 8, 16

READ, STORE, EXECUTE = Access(), Access(write=True), Access(fetch=True)
USER_READ, USER_STORE = Access(user=True), Access(write=True, user=True)

# A linear address with a number of its own in each index: 1, 2, 3, 4, and 0x567 in the page.
GVA = 1 << 39 | 2 << 30 | 3 << 21 | 4 << 12 | 0x567
PML4E, PDPTE, PDE, PTE = 0x1008, 0x2010, 0x3018, 0x4020

CR4 = CR4_PAE
EFER = EFER_LMA | EFER_NXE


def walker(
    tables: dict[int, int],
    *,
    cr0: int = CR0_PG | CR0_WP,
    cr3: int = 0x1000,
    cr4: int = CR4,
    efer: int = EFER,
    rflags: int = 2,
) -> Walker:
    state = State(
        gpr=(0,) * 16,
        rip=0,
        rflags=rflags,
        cr0=cr0,
        cr3=cr3,
        cr4=cr4,
        efer=efer,
        cpl=0,
        is_64bit=True,
        segments=(Segment(),) * 6,
    )
    return Walker(state, lambda gpa, size_bytes: tables.get(gpa, 0), 46)


def four_levels(
    *, pml4e: int = ALL, pdpte: int = ALL, pde: int = ALL, pte: int = ALL
) -> dict[int, int]:
    """GVA in a 4 KiB page at 0x5000, the entries with these bits, each as if accessed before."""
    return {
        PML4E: 0x2000 | A | pml4e,
        PDPTE: 0x3000 | A | pdpte,
        PDE: 0x4000 | A | pde,
        PTE: 0x5000 | A | D | pte,
    }


def error_code(walker: Walker, access: Access, gva: int = GVA) -> int:
    with pytest.raises(Fault) as raised:
        walker.translate(gva, access)
    assert (raised.value.vector, raised.value.cr2) == (14, gva)
    assert raised.value.error_code is not None
    return raised.value.error_code


# Where the byte is.


def test_without_paging_linear_addresses_are_physical() -> None:
    assert walker({}, cr0=0).translate(0x1234, STORE) == Translation(0x1234, ())


def test_four_levels_lead_to_a_4_kib_page() -> None:
    assert walker(four_levels()).translate(GVA, STORE) == Translation(0x5567, ())


def test_five_levels_begin_with_another_nine_bits() -> None:
    tables = {**four_levels(), 0x8000 + 7 * 8: 0x1000 | A | ALL}
    deep = walker(tables, cr3=0x8000, cr4=CR4_PAE | CR4_LA57)
    assert deep.translate(7 << 48 | GVA, READ).gpa == 0x5567


def test_large_page_takes_the_index_of_the_level_below_as_offset() -> None:
    tables = {**four_levels(), PDE: 0x60_0000 | A | PS | ALL}
    assert walker(tables).translate(GVA, READ).gpa == 0x60_4567


def test_1_gib_page_takes_two_levels_as_offset() -> None:
    tables = {**four_levels(), PDPTE: 0xC000_0000 | A | PS | ALL}
    assert walker(tables).translate(GVA, READ).gpa == 0xC000_0000 + (3 << 21 | 4 << 12 | 0x567)


def test_pat_bit_of_a_large_page_is_no_part_of_its_address() -> None:
    tables = {**four_levels(), PDE: 0x60_0000 | 1 << 12 | A | PS | ALL}
    assert walker(tables).translate(GVA, READ).gpa == 0x60_4567


def test_bits_of_cr3_that_are_no_address_are_ignored() -> None:
    assert walker(four_levels(), cr3=0x1000 | 0xFFF | 1 << 63).translate(GVA, READ).gpa == 0x5567


def test_32_bit_paging_has_two_levels_of_4_byte_entries() -> None:
    tables = {0x1000 + 4 * 5: 0x2000 | A | ALL, 0x2000 + 4 * 6: 0x7000 | A | ALL}
    legacy = walker(tables, cr4=0, efer=0)
    assert legacy.translate(5 << 22 | 6 << 12 | 0x89, READ).gpa == 0x7089


def test_4_mib_page_has_high_address_bits_below_the_others() -> None:
    tables = {0x1000 + 4 * 5: 0x0040_0000 | 0xAB << 13 | PS | A | ALL}
    legacy = walker(tables, cr4=CR4_PSE, efer=0)
    assert legacy.translate(5 << 22 | 0x12345, READ).gpa == 0xAB << 32 | 0x41_2345


def test_page_size_bit_is_ignored_without_pse() -> None:
    tables = {0x1000 + 4 * 5: 0x2000 | PS | A | ALL, 0x2000 + 4 * 6: 0x7000 | A | ALL}
    legacy = walker(tables, cr4=0, efer=0)
    assert legacy.translate(5 << 22 | 6 << 12 | 0x89, READ).gpa == 0x7089


def test_pae_paging_begins_with_four_entries_without_rights() -> None:
    tables = {0x1020 + 8 * 2: 0x3000 | P, 0x3018: 0x4000 | A | ALL, 0x4020: 0x5000 | A | D | ALL}
    pae = walker(tables, cr3=0x1020, efer=EFER_NXE)
    assert pae.translate(2 << 30 | 3 << 21 | 4 << 12 | 0x567, STORE).gpa == 0x5567


# Accessed and dirty flags.


def test_read_sets_accessed_at_every_level() -> None:
    tables = {gpa: entry & ~(A | D) for gpa, entry in four_levels().items()}
    updates = walker(tables).translate(GVA, READ).updates
    assert updates == tuple(Update(gpa, 8, entry | A) for gpa, entry in tables.items())


def test_write_sets_dirty_in_the_entry_of_the_page() -> None:
    tables = {**four_levels(), PTE: 0x5000 | A | ALL}
    updates = walker(tables).translate(GVA, STORE).updates
    assert updates == (Update(PTE, 8, 0x5000 | A | D | ALL),)


# What is refused.


@pytest.mark.parametrize("gpa", [PML4E, PDPTE, PDE, PTE])
def test_entry_that_is_not_present_faults(gpa: int) -> None:
    tables = {**four_levels(), gpa: 0}
    assert error_code(walker(tables), READ) == 0
    assert error_code(walker(tables), USER_STORE) == WRITE | USER


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_read_only_at_any_level_is_read_only(level: str) -> None:
    tables = four_levels(**{level: P | US})
    assert error_code(walker(tables), STORE) == PRESENT | WRITE
    assert error_code(walker(tables), USER_STORE) == PRESENT | WRITE | USER
    assert walker(tables).translate(GVA, USER_READ).gpa == 0x5567


def test_supervisor_writes_to_read_only_pages_without_wp() -> None:
    unprotected = walker(four_levels(pte=P | US), cr0=CR0_PG)
    assert unprotected.translate(GVA, STORE).gpa == 0x5567


def test_user_does_not_write_to_read_only_pages_without_wp() -> None:
    unprotected = walker(four_levels(pte=P | US), cr0=CR0_PG)
    assert error_code(unprotected, USER_STORE) == PRESENT | WRITE | USER


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_supervisor_at_any_level_keeps_users_out(level: str) -> None:
    tables = four_levels(**{level: P | RW})
    assert error_code(walker(tables), USER_READ) == PRESENT | USER
    assert walker(tables).translate(GVA, READ).gpa == 0x5567


def test_implicit_access_is_the_supervisors_at_any_cpl() -> None:
    access = Access(user=True, implicit=True)
    assert walker(four_levels(pte=P | RW)).translate(GVA, access).gpa == 0x5567


@pytest.mark.parametrize("level", ["pml4e", "pdpte", "pde", "pte"])
def test_no_execute_at_any_level_refuses_a_fetch(level: str) -> None:
    tables = four_levels(**{level: ALL | NX})
    assert error_code(walker(tables), EXECUTE) == PRESENT | FETCH
    assert walker(tables).translate(GVA, READ).gpa == 0x5567


def test_no_execute_is_reserved_without_nxe() -> None:
    tables = four_levels(pte=ALL | NX)
    assert error_code(walker(tables, efer=EFER_LMA), READ) == PRESENT | RESERVED


def test_fetch_is_not_told_without_nxe_and_smep() -> None:
    tables = {**four_levels(), PTE: 0}
    assert error_code(walker(tables, efer=EFER_LMA), EXECUTE) == 0
    assert error_code(walker(tables, efer=EFER_LMA, cr4=CR4 | CR4_SMEP), EXECUTE) == FETCH


def test_smep_keeps_the_supervisor_from_executing_user_pages() -> None:
    assert error_code(walker(four_levels(), cr4=CR4 | CR4_SMEP), EXECUTE) == PRESENT | FETCH


def test_smap_keeps_the_supervisor_from_user_pages() -> None:
    assert error_code(walker(four_levels(), cr4=CR4 | CR4_SMAP), READ) == PRESENT


def test_smap_lets_explicit_accesses_through_with_ac() -> None:
    smap = walker(four_levels(), cr4=CR4 | CR4_SMAP, rflags=2 | RFLAGS_AC)
    assert smap.translate(GVA, STORE).gpa == 0x5567
    assert error_code(smap, Access(implicit=True)) == PRESENT


@pytest.mark.parametrize(
    ("gpa", "bits"),
    [
        (PML4E, PS),
        (PML4E, 1 << 46),
        (PDPTE, 1 << 51),
        (PDE, 1 << 46),
        (PTE, 1 << 50),
        (PDE, PS | 1 << 13),
        (PDE, PS | 1 << 20),
        (PDPTE, PS | 1 << 13),
        (PDPTE, PS | 1 << 29),
    ],
)
def test_reserved_bit_faults(gpa: int, bits: int) -> None:
    tables = four_levels()
    tables[gpa] = tables[gpa] & 0xFFF | bits
    assert error_code(walker(tables), STORE) == PRESENT | WRITE | RESERVED


@pytest.mark.parametrize("bits", [RW, US, 1 << 5, 1 << 8, NX])
def test_reserved_bit_of_a_pae_pointer_faults(bits: int) -> None:
    pae = walker({0x1000: 0x3000 | P | bits}, efer=EFER_NXE)
    assert error_code(pae, READ, gva=0) == PRESENT | RESERVED


def test_reserved_bit_of_a_4_mib_page_faults() -> None:
    legacy = walker({0x1000: 1 << 21 | PS | ALL}, cr4=CR4_PSE, efer=0)
    assert error_code(legacy, READ, gva=0) == PRESENT | RESERVED


def test_bits_that_software_may_use_are_ignored() -> None:
    tables = four_levels(pte=ALL | 0x7 << 9 | 0x7F << 52)
    assert walker(tables).translate(GVA, READ).gpa == 0x5567
