"""From linear to physical addresses by the guest's own page tables, with #PF as the CPU gives it.

    mode (SDM 3A 4.1.1)     CR4          entry     index bits of a linear address, high to low
    no paging               CR0.PG = 0   -
    32-bit paging           PAE = 0      4 bytes   10 10            4 MiB pages by CR4.PSE
    PAE paging              PAE = 1      8 bytes   2 9 9            2 MiB pages
    4-level paging          EFER.LMA     8 bytes   9 9 9 9          2 MiB, 1 GiB pages
    5-level paging          LA57         8 bytes   9 9 9 9 9        2 MiB, 1 GiB pages

An access is refused as SDM 3A 4.6 and 4.7 have it: an entry that is not present, or has reserved
bits set; the R/W bit, for the supervisor only with CR0.WP; the U/S bit; XD; SMAP and SMEP.
Accessed and dirty flags (4.8) are returned as updates to be written, not written: an access that
faults at its second page leaves no trace at its first.

Left out: protection keys, shadow-stack pages, and the caching of translations: each walk reads
the tables as they are in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from pyvmm.completion import state as s
from pyvmm.completion.state import Fault

PAGE_BYTES = 0x1000

# Bits of an entry, SDM 3A table 4-20
PRESENT = 1 << 0
WRITABLE = 1 << 1
USER = 1 << 2
ACCESSED = 1 << 5
DIRTY = 1 << 6
PAGE_SIZE = 1 << 7
NO_EXECUTE = 1 << 63
_ADDRESS = 0x000F_FFFF_FFFF_F000

# Bits of a page fault's error code, SDM 3A figure 4-12
_ERROR_PRESENT = 1 << 0
_ERROR_WRITE = 1 << 1
_ERROR_USER = 1 << 2
_ERROR_RESERVED = 1 << 3
_ERROR_FETCH = 1 << 4

# In entries of PAE's first level these are reserved: it has no rights to give (SDM 3A table 4-8).
_PDPTE_RESERVED = WRITABLE | USER | 0b1_1110_0000

ReadPhysical = Callable[[int, int], int]
"""(gpa, size in bytes) -> a little-endian number; all ones where no memory is."""


class Access(NamedTuple):
    """What is wanted of a page."""

    write: bool = False
    fetch: bool = False
    user: bool = False
    implicit: bool = False
    """By the processor itself, as of a descriptor table: by the supervisor at any CPL."""


class Update(NamedTuple):
    """An entry whose accessed or dirty flag is to be set."""

    gpa: int
    size_bytes: int
    value: int


class Translation(NamedTuple):
    """Where the byte at a linear address is, and what to write if it is accessed."""

    gpa: int
    updates: tuple[Update, ...]


class Walker(NamedTuple):
    """The page tables of a processor in ``state``."""

    state: s.State
    read: ReadPhysical
    max_phys_bits: int
    """MAXPHYADDR: bits of an address above it are reserved. CPUID 0x8000_0008."""

    def translate(self, gva: int, access: Access) -> Translation:
        """Raises Fault (#PF) if ``access`` to ``gva`` is not allowed."""
        state = self.state
        if not state.cr0 & s.CR0_PG:
            return Translation(gva & 0xFFFF_FFFF, ())
        shifts, entry_bytes = _levels(state)
        index_mask = PAGE_BYTES // entry_bytes - 1
        table_gpa = state.cr3 & (_ADDRESS if len(shifts) != 3 else 0xFFFF_FFE0)
        entries: list[Update] = []
        rights = WRITABLE | USER
        executable = True
        shift = page_bits = 0
        entry = 0
        for shift in shifts:
            entry_gpa = table_gpa + (gva >> shift & index_mask) * entry_bytes
            entry = self.read(entry_gpa, entry_bytes)
            if not entry & PRESENT:
                raise self._fault(gva, access, 0)
            is_pdpte = shift == 30 and len(shifts) == 3
            is_leaf = shift == 12 or self._is_large(entry, shift, is_pdpte)
            if entry & self._reserved_bits(shift, entry_bytes, is_leaf, is_pdpte):
                raise self._fault(gva, access, _ERROR_PRESENT | _ERROR_RESERVED)
            if not is_pdpte:
                rights &= entry
                executable &= not entry & NO_EXECUTE
                entries.append(Update(entry_gpa, entry_bytes, entry))
            page_bits = shift
            if is_leaf:
                break
            table_gpa = entry & _ADDRESS
        if not self._is_allowed(access, rights, executable):
            raise self._fault(gva, access, _ERROR_PRESENT)
        in_page = (1 << page_bits) - 1
        gpa = _frame(entry, page_bits, entry_bytes) & ~in_page | gva & in_page
        return Translation(gpa, tuple(_flag_updates(entries, access)))

    def _is_large(self, entry: int, shift: int, is_pdpte: bool) -> bool:
        if not entry & PAGE_SIZE or is_pdpte:
            return False
        if shift == 22:
            return bool(self.state.cr4 & s.CR4_PSE)
        return shift in (21, 30)

    def _reserved_bits(self, shift: int, entry_bytes: int, is_leaf: bool, is_pdpte: bool) -> int:
        """The bits that must be zero in an entry of the level at ``shift``, SDM 3A 4.4 and 4.5."""
        if entry_bytes == 4:
            return 1 << 21 if is_leaf and shift == 22 else 0
        reserved = _ADDRESS & ~((1 << self.max_phys_bits) - 1)
        if len(_levels(self.state)[0]) == 3:
            reserved |= 0x7FF << 52
        if is_pdpte:
            return reserved | _PDPTE_RESERVED | NO_EXECUTE
        if not self.state.efer & s.EFER_NXE:
            reserved |= NO_EXECUTE
        if is_leaf and shift > 12:
            reserved |= (1 << shift) - 1 & ~0x1FFF  # bit 12 is the page's PAT bit
        elif shift > 30:
            reserved |= PAGE_SIZE
        return reserved

    def _is_allowed(self, access: Access, rights: int, executable: bool) -> bool:
        state = self.state
        user_page = bool(rights & USER)
        if access.fetch and not executable:
            return False
        if access.user and not access.implicit:
            return user_page and (not access.write or bool(rights & WRITABLE))
        if user_page and access.fetch and state.cr4 & s.CR4_SMEP:
            return False
        may_use_user_pages = bool(state.rflags & s.AC) and not access.implicit
        if user_page and not access.fetch and state.cr4 & s.CR4_SMAP and not may_use_user_pages:
            return False
        return not access.write or bool(rights & WRITABLE) or not state.cr0 & s.CR0_WP

    def _fault(self, gva: int, access: Access, error_code: int) -> Fault:
        state = self.state
        if access.write:
            error_code |= _ERROR_WRITE
        if access.user and not access.implicit:
            error_code |= _ERROR_USER
        has_nx = state.cr4 & s.CR4_PAE and state.efer & s.EFER_NXE
        if access.fetch and (has_nx or state.cr4 & s.CR4_SMEP):
            error_code |= _ERROR_FETCH
        return Fault(s.PAGE_FAULT, error_code, gva)


def _levels(state: s.State) -> tuple[tuple[int, ...], int]:
    """The shift of each level's index, and an entry's size in bytes."""
    if not state.cr4 & s.CR4_PAE:
        return (22, 12), 4
    if not state.efer & s.EFER_LMA:
        return (30, 21, 12), 8
    if state.cr4 & s.CR4_LA57:
        return (48, 39, 30, 21, 12), 8
    return (39, 30, 21, 12), 8


def _frame(entry: int, page_bits: int, entry_bytes: int) -> int:
    """The physical address in an entry that maps a page."""
    if entry_bytes == 4 and page_bits == 22:  # PSE-36: bits 20:13 are the address's bits 39:32
        return entry & 0xFFC0_0000 | (entry >> 13 & 0xFF) << 32
    return entry & _ADDRESS


def _flag_updates(entries: list[Update], access: Access) -> list[Update]:
    updates = []
    for number, (gpa, size_bytes, entry) in enumerate(entries):
        flags = ACCESSED
        if access.write and number == len(entries) - 1:
            flags |= DIRTY
        if entry & flags != flags:
            updates.append(Update(gpa, size_bytes, entry | flags))
    return updates
