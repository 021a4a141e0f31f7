"""What is set on a vCPU is what is read back, and what KVM refuses is said."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from builders.tiny_guest import CODE, TinyGuest, tiny_guest

from kvm_bindings import Cap, ExitReason, KvmError, Vcpu, as_dict, constants, new, view

pytestmark = pytest.mark.kvm

MSR_SYSENTER_CS, MSR_SYSENTER_ESP, MSR_UNKNOWN = 0x174, 0x175, 0xDEAD_BEEF


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    with tiny_guest("hlt") as guest:
        yield guest


@pytest.fixture
def with_irqchip() -> Iterator[TinyGuest]:
    with tiny_guest("hlt", irqchip=True) as guest:
        yield guest


def test_regs_round_trip(guest: TinyGuest) -> None:
    regs = guest.vcpu.get_regs()
    for number, name in enumerate(as_dict(regs)):
        if name != "rflags":
            setattr(regs, name, 0x1111_1111_1111_1111 * (number % 15 + 1))
    guest.vcpu.set_regs(regs)
    assert as_dict(guest.vcpu.get_regs()) == as_dict(regs)


def test_sregs_after_reset_are_those_of_the_sdm(guest: TinyGuest) -> None:
    with guest.vm.create_vcpu(1) as vcpu:
        sregs = vcpu.get_sregs()
        # SDM 3A table 10-1: the first instruction is at 0xfffffff0, CR0 is 0x60000010.
        assert (sregs.cs.selector, sregs.cs.base) == (0xF000, 0xFFFF_0000)
        assert vcpu.get_regs().rip == 0xFFF0
        assert sregs.cr0 == 0x6000_0010


def test_sregs_that_contradict_each_other_are_refused_with_the_remedy(guest: TinyGuest) -> None:
    sregs = guest.vcpu.get_sregs()
    sregs.efer = 1 << 10  # LMA without LME and paging, SDM 3A 2.2.1
    with pytest.raises(KvmError, match=r"^KVM_SET_SREGS: .*EINVAL.*EFER\.LMA together"):
        guest.vcpu.set_sregs(sregs)


def test_sregs2_holds_what_sregs_hold(guest: TinyGuest) -> None:
    assert guest.vm.check_extension(Cap.SREGS2)
    sregs2 = guest.vcpu.get_sregs2()
    sregs2.gdt.base, sregs2.gdt.limit = 0x4000, 0x27
    guest.vcpu.set_sregs2(sregs2)
    gdt = guest.vcpu.get_sregs().gdt
    assert (gdt.base, gdt.limit) == (0x4000, 0x27)


def test_fpu_round_trip(guest: TinyGuest) -> None:
    fpu = guest.vcpu.get_fpu()
    fpu.fcw = 0x27F  # SDM 1 8.1.5
    fpu.xmm[3] = list(range(16))
    guest.vcpu.set_fpu(fpu)
    back = guest.vcpu.get_fpu()
    assert back.fcw == 0x27F
    assert bytes(back.xmm[3]) == bytes(range(16))


def test_debugregs_round_trip(guest: TinyGuest) -> None:
    debugregs = guest.vcpu.get_debugregs()
    debugregs.db[2] = 0x1234_5000
    guest.vcpu.set_debugregs(debugregs)
    assert list(guest.vcpu.get_debugregs().db) == [0, 0, 0x1234_5000, 0]


def test_xsave_round_trip(guest: TinyGuest) -> None:
    xsave = guest.vcpu.get_xsave()
    area = view(xsave)
    area[0:2] = (0x27F).to_bytes(
        2, "little"
    )  # FCW at 0, MXCSR at 24, XMM0 at 160: SDM 1 table 10-2
    area[24:28] = (0x1F00).to_bytes(4, "little")
    area[160:176] = bytes(range(16))
    area[512:520] = (3).to_bytes(8, "little")  # XSTATE_BV: x87 and SSE, SDM 1 13.4.2
    guest.vcpu.set_xsave(xsave)
    fpu = guest.vcpu.get_fpu()
    assert fpu.fcw == 0x27F
    assert bytes(fpu.xmm[0]) == bytes(range(16))
    assert bytes(view(guest.vcpu.get_xsave())[24:28]) == b"\0\x1f\0\0"


def test_xsave2_has_the_size_that_the_capability_says(guest: TinyGuest) -> None:
    size = guest.vm.check_extension(Cap.XSAVE2)
    assert size >= 4096
    xsave = guest.vcpu.get_xsave2(size)
    assert bytes(view(xsave)[:4096]) == bytes(view(guest.vcpu.get_xsave()))
    with pytest.raises(ValueError, match="expected 4096 or more"):
        guest.vcpu.get_xsave2(0)


def test_xcrs_hold_xcr0_with_x87_on(guest: TinyGuest) -> None:
    assert guest.kvm.check_extension(Cap.XCRS)
    xcrs = guest.vcpu.get_xcrs()
    assert xcrs.nr_xcrs == 1
    assert xcrs.xcrs[0].xcr == 0
    assert xcrs.xcrs[0].value & 1  # always 1, SDM 3A 2.6
    guest.vcpu.set_xcrs(xcrs)


def test_xcr0_without_x87_is_refused(guest: TinyGuest) -> None:
    xcrs = guest.vcpu.get_xcrs()
    xcrs.xcrs[0].value = 2
    with pytest.raises(KvmError, match=r"^KVM_SET_XCRS: .*EINVAL"):
        guest.vcpu.set_xcrs(xcrs)


def test_cpuid_round_trip(guest: TinyGuest) -> None:
    entries = guest.kvm.get_supported_cpuid()
    vendor = entries[0]._replace(ebx=0x1111_1111, edx=0x2222_2222, ecx=0x3333_3333)
    assert vendor.function == 0
    guest.vcpu.set_cpuid2([vendor, *entries[1:]])
    back = guest.vcpu.get_cpuid2()
    assert back[0] == vendor
    assert [(e.function, e.index) for e in back] == [(e.function, e.index) for e in entries]


def test_cpuid_is_what_the_guest_sees(guest: TinyGuest) -> None:
    entries = guest.kvm.get_supported_cpuid()
    guest.vcpu.set_cpuid2([entries[0]._replace(ebx=0x6D6D_7679), *entries[1:]])
    guest.load("xor %eax, %eax; cpuid; hlt")
    assert guest.vcpu.run() == ExitReason.HLT
    assert guest.vcpu.get_regs().rbx == 0x6D6D_7679


def test_cpuid_with_too_many_entries_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_SET_CPUID2: .*E2BIG.*256"):
        guest.vcpu.set_cpuid2(guest.kvm.get_supported_cpuid()[:1] * 300)


def test_msrs_round_trip(guest: TinyGuest) -> None:
    assert guest.vcpu.set_msrs({MSR_SYSENTER_CS: 0x10, MSR_SYSENTER_ESP: 0x8000}) == 2
    assert guest.vcpu.get_msrs([MSR_SYSENTER_ESP, MSR_SYSENTER_CS]) == {
        MSR_SYSENTER_ESP: 0x8000,
        MSR_SYSENTER_CS: 0x10,
    }


def test_set_msrs_counts_those_before_the_refused(guest: TinyGuest) -> None:
    values = [(MSR_SYSENTER_CS, 0x10), (MSR_UNKNOWN, 1), (MSR_SYSENTER_ESP, 0x8000)]
    assert guest.vcpu.set_msrs(values) == 1
    assert guest.vcpu.get_msrs([MSR_SYSENTER_CS, MSR_SYSENTER_ESP]) == {
        MSR_SYSENTER_CS: 0x10,
        MSR_SYSENTER_ESP: 0,
    }


def test_get_msrs_ends_before_the_refused(guest: TinyGuest) -> None:
    assert list(guest.vcpu.get_msrs([MSR_SYSENTER_CS, MSR_UNKNOWN, MSR_SYSENTER_ESP])) == [
        MSR_SYSENTER_CS
    ]


def test_lapic_round_trip(with_irqchip: TinyGuest) -> None:
    lapic = with_irqchip.vcpu.get_lapic()
    assert bytes(view(lapic)[0x20:0x24]) == b"\0\0\0\0"  # the APIC id, SDM 3A 11.4.6: vCPU 0's
    view(lapic)[0x360:0x364] = (0x400).to_bytes(4, "little")  # LINT1 := NMI
    with_irqchip.vcpu.set_lapic(lapic)
    assert bytes(view(with_irqchip.vcpu.get_lapic())[0x360:0x364]) == b"\0\4\0\0"


def test_lapic_without_irqchip_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_GET_LAPIC: .*EINVAL.*create_irqchip"):
        guest.vcpu.get_lapic()


def test_mp_state_round_trip(with_irqchip: TinyGuest) -> None:
    assert with_irqchip.vcpu.get_mp_state() == constants.KVM_MP_STATE_RUNNABLE
    with_irqchip.vcpu.set_mp_state(constants.KVM_MP_STATE_HALTED)
    assert with_irqchip.vcpu.get_mp_state() == constants.KVM_MP_STATE_HALTED


def test_mp_state_without_irqchip_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_SET_MP_STATE: .*EINVAL.*create_irqchip"):
        guest.vcpu.set_mp_state(constants.KVM_MP_STATE_HALTED)


def test_vcpu_events_show_a_pending_nmi(guest: TinyGuest) -> None:
    assert guest.vcpu.get_vcpu_events().nmi.pending == 0
    guest.vcpu.nmi()
    assert guest.vcpu.get_vcpu_events().nmi.pending == 1


def test_vcpu_events_can_be_set(guest: TinyGuest) -> None:
    events = guest.vcpu.get_vcpu_events()
    events.nmi.masked = 1
    events.interrupt.shadow = constants.KVM_X86_SHADOW_INT_STI
    events.flags = constants.KVM_VCPUEVENT_VALID_SHADOW
    guest.vcpu.set_vcpu_events(events)
    assert guest.vcpu.get_vcpu_events().nmi.masked == 1


def test_tsc_frequency_can_be_read_and_kept(guest: TinyGuest) -> None:
    assert guest.kvm.check_extension(Cap.GET_TSC_KHZ)
    khz = guest.vcpu.get_tsc_khz()
    assert khz > 100_000
    guest.vcpu.set_tsc_khz(khz)
    assert guest.vcpu.get_tsc_khz() == khz


def test_translate_without_paging_is_the_same_address(guest: TinyGuest) -> None:
    translation = guest.vcpu.translate(0x1234)
    assert translation.valid
    assert translation.physical_address == 0x1234


def test_translate_follows_the_page_tables(guest: TinyGuest) -> None:
    # 4-level tables (SDM 3A 4.5) at 0x2000, 0x3000, 0x4000: linear 0x200000 is the 2 MiB at 0.
    for table, index, entry in ((0x2000, 0, 0x3003), (0x3000, 0, 0x4003), (0x4000, 1, 0x83)):
        guest.memory[table + 8 * index : table + 8 * index + 8] = entry.to_bytes(8, "little")
    sregs = guest.vcpu.get_sregs()
    sregs.cr3, sregs.cr4, sregs.cr0 = 0x2000, 1 << 5, 1 << 31 | 1  # PAE; PG and PE
    sregs.efer = 1 << 8 | 1 << 10  # LME and LMA
    sregs.cs.l, sregs.cs.db = 1, 0
    guest.vcpu.set_sregs(sregs)
    mapped = guest.vcpu.translate(0x20_1234)
    assert mapped.valid
    assert mapped.physical_address == 0x1234
    assert not guest.vcpu.translate(0x40_0000).valid


def test_kvmclock_ctrl_without_kvmclock_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    assert guest.kvm.check_extension(Cap.KVMCLOCK_CTRL)
    with pytest.raises(KvmError, match=r"^KVM_KVMCLOCK_CTRL: .*EINVAL.*kvmclock"):
        guest.vcpu.kvmclock_ctrl()


def test_smi_becomes_pending(guest: TinyGuest) -> None:
    if not guest.kvm.check_extension(Cap.X86_SMM):
        pytest.skip("this KVM has no system management mode")
    guest.vcpu.smi()
    assert guest.vcpu.get_vcpu_events().smi.pending == 1


def test_tpr_access_reporting_can_be_switched_on(with_irqchip: TinyGuest) -> None:
    if not with_irqchip.kvm.check_extension(Cap.VAPIC):
        pytest.skip("this KVM does not report TPR accesses")
    with_irqchip.vcpu.set_tpr_access_reporting(True)
    with_irqchip.vcpu.set_tpr_access_reporting(False)


def test_enable_cap_of_an_unknown_capability_is_refused(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_ENABLE_CAP: .*EINVAL"):
        guest.vcpu.enable_cap(0x7FFF_FFFF)


def test_vcpu_id_twice_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_CREATE_VCPU: .*EEXIST.*own id"):
        guest.vm.create_vcpu(0)


def test_vcpu_id_beyond_the_limit_is_refused_with_the_remedy(guest: TinyGuest) -> None:
    limit = guest.vm.check_extension(Cap.MAX_VCPU_ID)
    with pytest.raises(KvmError, match=r"^KVM_CREATE_VCPU: .*EINVAL.*MAX_VCPU_ID"):
        guest.vm.create_vcpu(limit)


CALLS: list[Callable[[Vcpu], object]] = [
    Vcpu.get_regs,
    Vcpu.get_sregs,
    Vcpu.get_lapic,
    Vcpu.get_cpuid2,
    Vcpu.get_stats,
    Vcpu.nmi,
    lambda vcpu: vcpu.get_msrs([MSR_SYSENTER_CS]),
    lambda vcpu: vcpu.set_regs(new("kvm_regs")),
]


@pytest.mark.parametrize("call", CALLS)
def test_vcpu_after_close_says_so(guest: TinyGuest, call: Callable[[Vcpu], object]) -> None:
    guest.vcpu.close()
    with pytest.raises(KvmError, match=r"EBADF.*after close\(\)"):
        call(guest.vcpu)


def test_rip_is_where_the_guest_was_loaded(guest: TinyGuest) -> None:
    assert guest.vcpu.get_regs().rip == CODE
