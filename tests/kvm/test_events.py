"""Interrupts into the guest, events out of it, and the clocks."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator

import pytest
from builders.tiny_guest import TinyGuest, tiny_guest

from kvm_bindings import (
    Cap,
    ExitReason,
    IrqchipRoute,
    Kvm,
    KvmError,
    MsiRoute,
    Vm,
    constants,
    exits,
    view,
)

pytestmark = pytest.mark.kvm

IRQ = 5
VECTOR = 0x20 + IRQ

# A PIC as every PC has it (8259A datasheet): ICW1 with ICW4, vectors from 0x20, slave on IR2, 8086
# mode with automatic EOI, all but IRQ masked. The handler reports to port 0x80 and halts again.
INTERRUPTIBLE = f"""
    movw $handler, {VECTOR} * 4
    movw $0, {VECTOR} * 4 + 2
    mov $0x11, %al; outb %al, $0x20
    mov $0x20, %al; outb %al, $0x21
    mov $0x04, %al; outb %al, $0x21
    mov $0x03, %al; outb %al, $0x21
    mov ${~(1 << IRQ) & 0xFF}, %al; outb %al, $0x21
    outb %al, $0x90
    sti
    1: hlt
    jmp 1b
    handler: outb %al, $0x80
    iret
"""


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm


@pytest.fixture
def guest() -> Iterator[TinyGuest]:
    """A guest with an irqchip that is ready for IRQ; halted, it waits in the kernel."""
    with tiny_guest(INTERRUPTIBLE, irqchip=True) as guest:
        lapic = guest.vcpu.get_lapic()
        # LVT LINT0 := ExtINT, unmasked (SDM 3A 11.5.1): the PIC's way to the CPU.
        view(lapic)[0x350:0x354] = (0x700).to_bytes(4, "little")
        guest.vcpu.set_lapic(lapic)
        assert guest.vcpu.run() == ExitReason.IO
        assert guest.vcpu.io.port == 0x90
        yield guest


@pytest.fixture
def event() -> Iterator[int]:
    """An eventfd that never blocks."""
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def expect_interrupt(guest: TinyGuest) -> None:
    assert guest.vcpu.run() == ExitReason.IO
    assert guest.vcpu.io.port == 0x80


def test_irq_line_interrupts_a_halted_guest(guest: TinyGuest) -> None:
    guest.vm.irq_line(IRQ, 1)
    expect_interrupt(guest)


def test_irq_line_status_counts_the_vcpus_reached(guest: TinyGuest) -> None:
    assert guest.vm.irq_line_status(IRQ, 1) > 0
    guest.vm.irq_line(IRQ, 0)
    expect_interrupt(guest)


def test_irqfd_interrupts_a_halted_guest(guest: TinyGuest, event: int) -> None:
    guest.vm.irqfd(event, IRQ)
    os.eventfd_write(event, 1)
    expect_interrupt(guest)
    os.eventfd_write(event, 1)
    expect_interrupt(guest)


def test_irqfd_taken_back_no_longer_interrupts(guest: TinyGuest, event: int) -> None:
    guest.vm.irqfd(event, IRQ)
    guest.vm.irqfd(event, IRQ, assign=False)
    os.eventfd_write(event, 1)
    assert os.eventfd_read(event) == 1, "nobody took the event"
    guest.vm.irqfd(event, IRQ)  # an eventfd that is still an irqfd would be refused


def test_irqfd_twice_is_refused_with_the_remedy(guest: TinyGuest, event: int) -> None:
    guest.vm.irqfd(event, IRQ)
    with pytest.raises(KvmError, match=r"^KVM_IRQFD: .*EBUSY.*its own"):
        guest.vm.irqfd(event, IRQ)


def test_irqfd_without_irqchip_is_refused_with_the_remedy(vm: Vm, event: int) -> None:
    with pytest.raises(KvmError, match=r"^KVM_IRQFD: .*EINVAL.*create_irqchip"):
        vm.irqfd(event, IRQ)


def test_resampling_irqfd_reports_the_eoi(guest: TinyGuest, event: int) -> None:
    assert guest.vm.check_extension(Cap.IRQFD_RESAMPLE)
    resample = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    try:
        guest.vm.irqfd(event, IRQ, resample)
        os.eventfd_write(event, 1)
        expect_interrupt(guest)  # the PIC is in automatic EOI mode: acknowledging is the EOI
        assert os.eventfd_read(resample) == 1
    finally:
        os.close(resample)


def test_gsi_route_leads_to_the_pin(guest: TinyGuest, event: int) -> None:
    gsi = 20
    guest.vm.set_gsi_routing([IrqchipRoute(gsi, constants.KVM_IRQCHIP_PIC_MASTER, IRQ)])
    guest.vm.irq_line(gsi, 1)
    expect_interrupt(guest)


def test_gsi_route_to_a_pin_that_is_not_is_refused(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_SET_GSI_ROUTING: .*EINVAL.*out of range"):
        guest.vm.set_gsi_routing([IrqchipRoute(0, constants.KVM_IRQCHIP_IOAPIC, 99)])


MSI_ADDRESS = 0xFEE0_0000  # to the local APIC with id 0, fixed delivery: SDM 3A 11.11


def accept_msi(guest: TinyGuest) -> None:
    lapic = guest.vcpu.get_lapic()
    view(lapic)[0xF0:0xF4] = (0x1FF).to_bytes(4, "little")  # SVR: software-enabled, SDM 3A 11.9
    guest.vcpu.set_lapic(lapic)


def test_signal_msi_interrupts_a_halted_guest(guest: TinyGuest) -> None:
    accept_msi(guest)
    assert guest.vm.signal_msi(MSI_ADDRESS, VECTOR) > 0
    expect_interrupt(guest)


def test_msi_route_sends_its_message(guest: TinyGuest, event: int) -> None:
    accept_msi(guest)
    guest.vm.set_gsi_routing([MsiRoute(24, MSI_ADDRESS, VECTOR)])
    guest.vm.irqfd(event, 24)
    os.eventfd_write(event, 1)
    expect_interrupt(guest)


def test_irqchip_state_is_what_the_guest_programmed(guest: TinyGuest) -> None:
    pic = guest.vm.get_irqchip(constants.KVM_IRQCHIP_PIC_MASTER).chip.pic
    assert pic.irq_base == 0x20
    assert pic.imr == ~(1 << IRQ) & 0xFF
    assert pic.auto_eoi == 1


def test_irqchip_state_can_be_changed(guest: TinyGuest) -> None:
    ioapic = guest.vm.get_irqchip(constants.KVM_IRQCHIP_IOAPIC)
    assert ioapic.chip.ioapic.base_address == 0xFEC0_0000  # 82093AA datasheet, 3.0
    ioapic.chip.ioapic.redirtbl[4].bits = 0x1_0031  # masked, vector 0x31: 82093AA 3.2.4
    guest.vm.set_irqchip(ioapic)
    entry = guest.vm.get_irqchip(constants.KVM_IRQCHIP_IOAPIC).chip.ioapic.redirtbl[4]
    assert (entry.fields.vector, entry.fields.mask, entry.fields.trig_mode) == (0x31, 1, 0)


def test_irqchip_twice_is_refused_with_the_remedy(vm: Vm) -> None:
    vm.create_irqchip()
    with pytest.raises(KvmError, match=r"^KVM_CREATE_IRQCHIP: .*EEXIST.*once"):
        vm.create_irqchip()


def test_irqchip_after_a_vcpu_is_refused_with_the_remedy() -> None:
    with (
        tiny_guest("hlt") as guest,
        pytest.raises(KvmError, match=r"^KVM_CREATE_IRQCHIP: .*before the first vCPU"),
    ):
        guest.vm.create_irqchip()


@pytest.mark.parametrize("call", ["irq_line", "get_irqchip"])
def test_irqchip_that_is_not_is_refused_with_the_remedy(vm: Vm, call: str) -> None:
    with pytest.raises(KvmError, match=r"ENXIO.*create_irqchip first"):
        vm.irq_line(0, 1) if call == "irq_line" else vm.get_irqchip(0)


def test_interrupt_injection_with_an_irqchip_is_refused(guest: TinyGuest) -> None:
    with pytest.raises(KvmError, match=r"^KVM_INTERRUPT: .*ENXIO.*irq_line"):
        guest.vcpu.interrupt(0x30)


def test_ioeventfd_takes_the_writes_of_its_size(event: int) -> None:
    with tiny_guest("mov $0xf000, %ax; mov %ax, %es; movl $1, %es:0; movb $2, %es:0") as guest:
        guest.vm.ioeventfd(event, 0xF0000, 4)
        assert guest.vcpu.run() == ExitReason.MMIO
        assert guest.vcpu.decode() == exits.MmioWrite(phys_addr=0xF0000, data=b"\2")
        assert os.eventfd_read(event) == 1


def test_ioeventfd_with_datamatch_takes_that_value_alone(event: int) -> None:
    source = "mov $7, %ax; outw %ax, $0x50; mov $8, %ax; outw %ax, $0x50"
    with tiny_guest(source) as guest:
        guest.vm.ioeventfd(event, 0x50, 2, datamatch=7, pio=True)
        assert guest.vcpu.run() == ExitReason.IO
        assert guest.vcpu.decode() == exits.IoOut(port=0x50, size=2, count=1, data=b"\x08\0")
        assert os.eventfd_read(event) == 1


def test_ioeventfd_of_any_length_takes_every_size(event: int) -> None:
    source = "mov $0xf000, %ax; mov %ax, %es; movl $1, %es:0; movb $2, %es:0; hlt"
    with tiny_guest(source) as guest:
        assert guest.kvm.check_extension(Cap.IOEVENTFD_ANY_LENGTH)
        guest.vm.ioeventfd(event, 0xF0000, 0)
        assert guest.vcpu.run() == ExitReason.HLT
        assert os.eventfd_read(event) == 2


def test_ioeventfd_taken_back_exits_again(event: int) -> None:
    with tiny_guest("outb %al, $0x50") as guest:
        guest.vm.ioeventfd(event, 0x50, 1, pio=True)
        guest.vm.ioeventfd(event, 0x50, 1, pio=True, assign=False)
        assert guest.vcpu.run() == ExitReason.IO
        with pytest.raises(BlockingIOError):
            os.eventfd_read(event)


def test_ioeventfd_twice_is_refused_with_the_remedy(vm: Vm, event: int) -> None:
    vm.ioeventfd(event, 0x50, 1, pio=True)
    with pytest.raises(KvmError, match=r"^KVM_IOEVENTFD: .*EEXIST"):
        vm.ioeventfd(event, 0x50, 1, pio=True)


def test_ioeventfd_that_is_not_is_refused_with_the_remedy(vm: Vm, event: int) -> None:
    with pytest.raises(KvmError, match=r"^KVM_IOEVENTFD: .*ENOENT.*added with"):
        vm.ioeventfd(event, 0x50, 1, pio=True, assign=False)


def test_coalesced_port_writes_come_in_runs() -> None:
    source = """
        mov $0x3f8, %dx
        mov $'a', %al; outb %al, %dx
        mov $'b', %al; outb %al, %dx
        mov $'c', %al; outb %al, %dx
        mov $0x3f9, %dx; outb %al, %dx     # another port
        mov $0x3f8, %dx
        mov $0x5857, %ax; outw %ax, %dx    # another size
        outw %ax, %dx
        hlt
    """
    with tiny_guest(source) as guest:
        assert guest.vm.check_extension(Cap.COALESCED_PIO)
        guest.vm.register_coalesced_zone(0x3F8, 2, pio=True)
        assert not guest.vcpu.coalesced_pending
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.coalesced_pending
        assert guest.vcpu.take_coalesced() == (0x3F8, 1, True, b"abc")
        assert guest.vcpu.take_coalesced() == (0x3F9, 1, True, b"c")
        assert guest.vcpu.take_coalesced() == (0x3F8, 2, True, b"WXWX")
        assert guest.vcpu.take_coalesced() is None
        assert not guest.vcpu.coalesced_pending


def test_coalesced_ring_goes_round_and_keeps_the_order() -> None:
    # The ring holds one less than KVM_COALESCED_MMIO_MAX: the write that does not fit exits. Older
    # kernels (Linux 6.1) exit early now and then, miscounting what is free once indices wrap.
    with tiny_guest("mov $0x3f8, %dx; 1: outb %al, %dx; inc %al; jmp 1b") as guest:
        room = constants.KVM_COALESCED_MMIO_MAX - 1
        guest.vm.register_coalesced_zone(0x3F8, 1, pio=True)
        seen = b""
        while len(seen) < 1000:
            assert guest.vcpu.run() == ExitReason.IO
            taken = guest.vcpu.take_coalesced()
            assert taken is not None
            assert 0 < len(taken[3]) <= room
            seen += taken[3] + bytes(guest.vcpu.io_data())
            assert guest.vcpu.take_coalesced() is None
        assert seen == bytes(index & 0xFF for index in range(len(seen)))


def test_coalesced_mmio_writes_come_with_their_address() -> None:
    source = "mov $0xf000, %ax; mov %ax, %es; movl $0x11223344, %es:8; movb $5, %es:9; hlt"
    with tiny_guest(source) as guest:
        guest.vm.register_coalesced_zone(0xF0000, 0x1000)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.take_coalesced() == (0xF0008, 4, False, b"\x44\x33\x22\x11")
        assert guest.vcpu.take_coalesced() == (0xF0009, 1, False, b"\5")
        assert guest.vcpu.take_coalesced() is None


def test_coalesced_ring_is_shared_by_the_vcpus_of_a_vm() -> None:
    with tiny_guest("outb %al, $0x50; hlt") as guest, guest.vm.create_vcpu(1) as other:
        guest.vm.register_coalesced_zone(0x50, 1, pio=True)
        guest.vcpu.run()
        assert other.coalesced_pending
        assert other.take_coalesced() == (0x50, 1, True, b"\0")
        assert not guest.vcpu.coalesced_pending


def test_coalesced_zone_taken_back_exits_again() -> None:
    with tiny_guest("outb %al, $0x50") as guest:
        guest.vm.register_coalesced_zone(0x50, 1, pio=True)
        guest.vm.unregister_coalesced_zone(0x50, 1, pio=True)
        assert guest.vcpu.run() == ExitReason.IO
        assert not guest.vcpu.coalesced_pending


def test_coalesced_ring_with_impossible_indices_is_refused() -> None:
    with tiny_guest("hlt") as guest:
        ring = guest.vm.check_extension(Cap.COALESCED_MMIO) * mmap.PAGESIZE
        guest.vcpu.buffer[ring + 4 : ring + 8] = b"\xff\xff\xff\xff"  # last
        with pytest.raises(KvmError, match="indices are out of range"):
            guest.vcpu.take_coalesced()


def test_pit_state_is_what_was_set(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_pit2(constants.KVM_PIT_SPEAKER_DUMMY)
    state = vm.get_pit2()
    state.channels[2].count = 0x1234
    state.channels[2].mode = 3
    vm.set_pit2(state)
    channel = vm.get_pit2().channels[2]
    assert (channel.count, channel.mode) == (0x1234, 3)


def test_pit_without_irqchip_is_refused_with_the_remedy(vm: Vm) -> None:
    try:
        vm.create_pit2()
    except KvmError as error:
        refusal = str(error)
    else:
        pytest.skip("this kernel makes a PIT without an irqchip, as Linux 6.1 does")
    assert re.search(r"^KVM_CREATE_PIT2: .*ENOENT.*create_irqchip first", refusal)


def test_pit_twice_is_refused_with_the_remedy(vm: Vm) -> None:
    vm.create_irqchip()
    vm.create_pit2()
    with pytest.raises(KvmError, match=r"^KVM_CREATE_PIT2: .*EEXIST.*once"):
        vm.create_pit2()


def test_pit_that_is_not_is_refused_with_the_remedy(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"^KVM_GET_PIT2: .*ENXIO.*create_pit2 first"):
        vm.get_pit2()


def test_pit_reinjection_can_be_switched_off(vm: Vm) -> None:
    vm.create_irqchip()
    with pytest.raises(KvmError, match=r"^KVM_REINJECT_CONTROL: "):
        vm.set_pit_reinject(False)
    vm.create_pit2()
    vm.set_pit_reinject(False)


def test_clock_goes_on_from_what_was_set(vm: Vm) -> None:
    assert vm.check_extension(Cap.ADJUST_CLOCK)
    hour_ns = 3600 * 10**9
    vm.set_clock(hour_ns)
    first = vm.get_clock().clock
    assert hour_ns <= first < 2 * hour_ns
    assert vm.get_clock().clock >= first


def test_boot_cpu_after_a_vcpu_is_refused_with_the_remedy() -> None:
    with (
        tiny_guest("hlt") as guest,
        pytest.raises(KvmError, match=r"^KVM_SET_BOOT_CPU_ID: .*EBUSY.*before the first vCPU"),
    ):
        guest.vm.set_boot_cpu_id(1)


def test_boot_cpu_is_the_one_that_is_runnable(vm: Vm) -> None:
    vm.create_irqchip()
    vm.set_boot_cpu_id(1)
    with vm.create_vcpu(0) as first, vm.create_vcpu(1) as second:
        assert first.get_mp_state() == constants.KVM_MP_STATE_UNINITIALIZED
        assert second.get_mp_state() == constants.KVM_MP_STATE_RUNNABLE


def test_device_of_no_known_type_is_refused(vm: Vm) -> None:
    with pytest.raises(KvmError, match=r"^KVM_CREATE_DEVICE: .*ENODEV"):
        vm.create_device(0xFFFF, constants.KVM_CREATE_DEVICE_TEST)


def test_vm_stats_count_the_vcpus_exits() -> None:
    with tiny_guest("outb %al, $0x50; outb %al, $0x50") as guest:
        assert guest.vm.check_extension(Cap.BINARY_STATS_FD)
        before = guest.vcpu.get_stats()["exits"]
        guest.vcpu.run()
        guest.vcpu.run()
        after = guest.vcpu.get_stats()["exits"]
        assert isinstance(before, int)
        assert isinstance(after, int)
        assert after > before
        assert "remote_tlb_flush" in guest.vm.get_stats()
        assert isinstance(guest.vcpu.get_stats()["halt_wait_hist"], list)


def test_vm_after_close_says_so(vm: Vm) -> None:
    vm.close()
    vm.close()
    for call in (vm.create_irqchip, vm.get_clock, vm.get_stats, lambda: vm.create_vcpu(0)):
        with pytest.raises(KvmError, match=r"EBADF.*after close\(\)"):
            call()
