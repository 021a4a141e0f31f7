"""A vCPU's registers as text, in the order in which people who read oopses expect them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvm_bindings.structs import kvm_regs, kvm_segment, kvm_sregs

_ROWS = (
    ("rax", "rbx", "rcx", "rdx"),
    ("rsi", "rdi", "rbp", "rsp"),
    ("r8", "r9", "r10", "r11"),
    ("r12", "r13", "r14", "r15"),
)
_SEGMENTS = ("cs", "ds", "es", "fs", "gs", "ss", "tr")


def format_registers(regs: kvm_regs, sregs: kvm_sregs) -> str:
    """Several lines: general, segment and control registers."""
    lines = [f"rip {regs.rip:016x}  rflags {regs.rflags:08x}  {cpu_mode(sregs)}"]
    lines += ["  ".join(f"{name:<3} {getattr(regs, name):016x}" for name in row) for row in _ROWS]
    lines += [
        "  ".join(_format_segment(name, getattr(sregs, name)) for name in pair)
        for pair in (_SEGMENTS[:2], _SEGMENTS[2:4], _SEGMENTS[4:6], _SEGMENTS[6:])
    ]
    lines.append(
        f"cr0 {sregs.cr0:08x}  cr2 {sregs.cr2:016x}  cr3 {sregs.cr3:016x}  "
        f"cr4 {sregs.cr4:08x}  efer {sregs.efer:x}"
    )
    lines.append(
        f"gdt {sregs.gdt.base:016x}:{sregs.gdt.limit:04x}  "
        f"idt {sregs.idt.base:016x}:{sregs.idt.limit:04x}"
    )
    return "\n".join(lines)


def cpu_mode(sregs: kvm_sregs) -> str:
    """The mode that a processor with these registers is in (SDM 3A 2.2), and its ring."""
    if not sregs.cr0 & 1:
        return "real mode"
    if sregs.efer & 1 << 10:
        mode = "64-bit mode" if sregs.cs.l else "compatibility mode"
    else:
        mode = "32-bit protected mode" if sregs.cs.db else "16-bit protected mode"
    return f"{mode}, CPL {sregs.ss.dpl}"


def _format_segment(name: str, segment: kvm_segment) -> str:
    return (
        f"{name} {segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x} "
        f"type {segment.type:x} dpl {segment.dpl}"
    )
