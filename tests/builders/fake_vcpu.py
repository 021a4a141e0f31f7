"""A vCPU without KVM: structs that are read and written, and page tables that a test chooses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kvm_bindings import CpuidEntry
from kvm_bindings.cdata import new, view
from pyvmm.memory import GuestMemory

XSAVE_BYTES = 4096
GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *(f"r{number}" for number in range(8, 16)),
)

# Page table entries: SDM 3A table 4-15 and those after it
PRESENT, WRITABLE, USER, LARGE = 1 << 0, 1 << 1, 1 << 2, 1 << 7
ACCESSED, DIRTY = 1 << 5, 1 << 6


class FakeVcpu:
    """What a Completer uses of a vCPU. Getters give copies, as ioctls do."""

    def __init__(self) -> None:
        self.regs = new("kvm_regs")
        self.sregs = new("kvm_sregs")
        self.xsave = bytes(XSAVE_BYTES)
        self.xcr0 = 1
        self.events = new("kvm_vcpu_events")
        self.msrs: dict[int, int] = {}
        self.cpuid: list[CpuidEntry] = []

    def get_regs(self) -> Any:
        return _copy("kvm_regs", self.regs)

    def set_regs(self, regs: Any) -> None:
        self.regs = _copy("kvm_regs", regs)

    def get_sregs(self) -> Any:
        return _copy("kvm_sregs", self.sregs)

    def set_sregs(self, sregs: Any) -> None:
        self.sregs = _copy("kvm_sregs", sregs)

    def get_xsave2(self, size_bytes: int) -> Any:
        assert size_bytes == XSAVE_BYTES
        return self.get_xsave()

    def get_xsave(self) -> Any:
        xsave = new("kvm_xsave")
        view(xsave)[:] = self.xsave
        return xsave

    def set_xsave(self, xsave: Any) -> None:
        self.xsave = bytes(view(xsave))

    def get_xcrs(self) -> Any:
        xcrs = new("kvm_xcrs")
        xcrs.nr_xcrs = 1
        xcrs.xcrs[0].value = self.xcr0
        return xcrs

    def set_xcrs(self, xcrs: Any) -> None:
        self.xcr0 = xcrs.xcrs[0].value

    def get_vcpu_events(self) -> Any:
        return _copy("kvm_vcpu_events", self.events)

    def set_vcpu_events(self, events: Any) -> None:
        self.events = _copy("kvm_vcpu_events", events)

    def get_msrs(self, indices: Iterable[int]) -> dict[int, int]:
        return {index: self.msrs[index] for index in indices if index in self.msrs}

    def get_cpuid2(self) -> list[CpuidEntry]:
        return self.cpuid

    @property
    def gpr(self) -> tuple[int, ...]:
        """The general registers, in the order of encodings."""
        return tuple(getattr(self.regs, name) for name in GPR_NAMES)

    @property
    def exception(self) -> tuple[int, int | None] | None:
        """Vector and error code of the exception that was injected."""
        exception = self.events.exception
        if not exception.injected:
            return None
        return exception.nr, exception.error_code if exception.has_error_code else None

    def enter_64bit(self, *, cpl: int, cr3: int) -> None:
        """64-bit mode as Linux has it: WP, NXE, SSE and XSAVE enabled."""
        sregs = self.sregs
        sregs.cr0 = 0x8005_0033  # PE MP ET NE WP AM PG
        sregs.cr4 = 0x0005_0E20  # PAE OSFXSR OSXMMEXCPT UMIP FSGSBASE OSXSAVE
        sregs.cr3 = cr3
        sregs.efer = 0xD01  # SCE LME LMA NXE
        sregs.cs.l = 1
        sregs.cs.dpl = sregs.ss.dpl = cpl
        for name in ("cs", "ss", "ds", "es", "fs", "gs"):
            getattr(sregs, name).limit = 0xFFFF_FFFF


def _copy(name: str, struct: Any) -> Any:
    copy = new(name)
    view(copy)[:] = view(struct)
    return copy


def map_pages(memory: GuestMemory, tables_gpa: int, pages: Mapping[int, int]) -> int:
    """4-level page tables at ``tables_gpa`` with ``pages``: linear address -> 4 KiB page's entry.

    Returns CR3. Higher levels allow everything.
    """
    next_gpa = tables_gpa + 0x1000
    for gva, entry in pages.items():
        table_gpa = tables_gpa
        for shift in (39, 30, 21):
            at = table_gpa + (gva >> shift & 511) * 8
            table_gpa = memory.read_u64(at) & ~0xFFF
            if not table_gpa:
                table_gpa = next_gpa
                next_gpa += 0x1000
                memory.write_u64(at, table_gpa | PRESENT | WRITABLE | USER)
        memory.write_u64(table_gpa + (gva >> 12 & 511) * 8, entry)
    return tables_gpa
