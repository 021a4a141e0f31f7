"""The stub behind the real-mode vectors, called by a guest as a BIOS would be."""

from __future__ import annotations

import pytest
from builders.tiny_guest import tiny_guest

from kvm_bindings.exits import Hlt
from pyvmm.arch.x86_64 import bios, layout

pytestmark = pytest.mark.kvm

SERVICES = range(0x10, 0x1B)  # video to the time of day: what a BIOS has


def test_every_bios_call_fails_and_changes_nothing_else() -> None:
    calls = "".join(
        f"""
        clc
        int ${vector:#x}
        mov $0, %cx
        setc %cl
        add %cx, 0x4000
        """
        for vector in SERVICES
    )
    source = f"mov $0xe820, %ax; mov $0x534d4150, %edx; mov $0x1234, %bp; {calls} hlt"
    with tiny_guest(source) as guest:
        vectors, stub = layout.REAL_MODE_VECTORS_GPA, layout.BIOS_STUB_GPA
        guest.memory[vectors : vectors + len(bios.VECTORS)] = bios.VECTORS
        guest.memory[stub : stub + len(bios.STUB)] = bios.STUB
        before = guest.vcpu.get_regs()
        guest.vcpu.run()
        assert guest.vcpu.decode() == Hlt()
        after = guest.vcpu.get_regs()
        assert int.from_bytes(guest.memory[0x4000:0x4002], "little") == len(SERVICES)
    assert (after.rax, after.rdx, after.rbp) == (0xE820, 0x534D4150, 0x1234)
    assert after.rsp == before.rsp
