"""Real guests, one exit after the other: port I/O, MMIO, string I/O, debugging, MSRs."""

from __future__ import annotations

import pytest
from builders.host import is_emulated_by_qemu
from builders.tiny_guest import CODE, tiny_guest

from kvm_bindings import Cap, ExitReason, KvmError, MsrFilterRange, constants, exits

pytestmark = pytest.mark.kvm


@pytest.mark.parametrize(
    ("instruction", "size", "data"),
    [
        ("outb %al, %dx", 1, b"\x78"),
        ("outw %ax, %dx", 2, b"\x78\x56"),
        ("outl %eax, %dx", 4, b"\x78\x56\x34\x12"),
    ],
)
def test_out_exits_with_port_size_and_data(instruction: str, size: int, data: bytes) -> None:
    with tiny_guest(f"mov $0x3f8, %dx; mov $0x12345678, %eax; {instruction}") as guest:
        assert guest.vcpu.run() == ExitReason.IO
        assert guest.vcpu.decode() == exits.IoOut(port=0x3F8, size=size, count=1, data=data)


@pytest.mark.parametrize(
    ("instruction", "size", "answer", "eax"),
    [
        ("inb %dx, %al", 1, b"\xaa", 0xFFFF_FFAA),
        ("inw %dx, %ax", 2, b"\xaa\xbb", 0xFFFF_BBAA),
        ("inl %dx, %eax", 4, b"\xaa\xbb\xcc\xdd", 0xDDCC_BBAA),
    ],
)
def test_in_gets_the_answer(instruction: str, size: int, answer: bytes, eax: int) -> None:
    with tiny_guest(f"mov $0x60, %dx; mov $0xffffffff, %eax; {instruction}; hlt") as guest:
        assert guest.vcpu.run() == ExitReason.IO
        assert guest.vcpu.decode() == exits.IoIn(port=0x60, size=size, count=1)
        guest.vcpu.complete_io_in(answer)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_regs().rax == eax


def test_in_refuses_an_answer_of_another_size() -> None:
    with tiny_guest("inb $0x60, %al") as guest:
        guest.vcpu.run()
        with pytest.raises(ValueError, match="different"):
            guest.vcpu.complete_io_in(b"too long")


def test_string_out_brings_all_its_data() -> None:
    with tiny_guest("mov $0x402, %dx; mov $text, %si; mov $6, %cx; cld; rep outsb; hlt\n"
                    "text: .ascii \"string\"") as guest:  # fmt: skip
        data, counts = b"", []
        while guest.vcpu.run() == ExitReason.IO:
            match guest.vcpu.decode():
                case exits.IoOut(port=0x402, size=1, count=count, data=part):
                    assert len(part) == count
                    data += part
                    counts.append(count)
        assert data == b"string"
        assert sum(counts) == 6
        assert guest.vcpu.get_regs().rcx == 0


def test_string_in_puts_all_its_data_into_memory() -> None:
    with tiny_guest("mov $0x1f0, %dx; mov $0x4000, %di; mov $4, %cx; cld; rep insw; hlt") as guest:
        given = 0
        while guest.vcpu.run() == ExitReason.IO:
            exit_ = guest.vcpu.decode()
            assert isinstance(exit_, exits.IoIn)
            assert (exit_.port, exit_.size) == (0x1F0, 2)
            numbers = range(given, given + exit_.count)
            guest.vcpu.complete_io_in(b"".join(n.to_bytes(2, "big") for n in numbers))
            given += exit_.count
        assert given == 4
        assert guest.memory[0x4000:0x4008] == b"\0\0\0\1\0\2\0\3"


FLAT_ES = "mov $0xf000, %ax; mov %ax, %es;"  # ES:0 is linear 0xf0000: above the 64 KiB of memory


@pytest.mark.parametrize(
    ("store", "data"),
    [
        ("movb $0x5a, %es:0x10", b"\x5a"),
        ("movw $0x5aa5, %es:0x10", b"\xa5\x5a"),
        ("movl $0x12345678, %es:0x10", b"\x78\x56\x34\x12"),
    ],
)
def test_store_outside_memory_exits_as_mmio_write(store: str, data: bytes) -> None:
    with tiny_guest(f"{FLAT_ES} {store}") as guest:
        assert guest.vcpu.run() == ExitReason.MMIO
        assert guest.vcpu.decode() == exits.MmioWrite(phys_addr=0xF0010, data=data)


@pytest.mark.parametrize(
    ("load", "answer", "eax"),
    [
        ("movb %es:0x20, %al", b"\x77", 0x77),
        ("movw %es:0x20, %ax", b"\x77\x66", 0x6677),
        ("movl %es:0x20, %eax", b"\x77\x66\x55\x44", 0x4455_6677),
    ],
)
def test_load_outside_memory_gets_the_answer(load: str, answer: bytes, eax: int) -> None:
    with tiny_guest(f"{FLAT_ES} xor %eax, %eax; {load}; hlt") as guest:
        assert guest.vcpu.run() == ExitReason.MMIO
        assert guest.vcpu.decode() == exits.MmioRead(phys_addr=0xF0020, len=len(answer))
        guest.vcpu.complete_mmio_read(answer)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_regs().rax == eax


def test_hlt_without_irqchip_exits() -> None:
    with tiny_guest("hlt") as guest:
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.decode() == exits.Hlt()
        assert guest.vcpu.get_regs().rip == CODE + 1


def test_triple_fault_exits_as_shutdown() -> None:
    # In protected mode with an IDT of no entries #UD, then #GP, then #DF cannot be delivered.
    source = """
        lidt empty
        mov %cr0, %eax
        or $1, %al
        mov %eax, %cr0
        ud2
        empty: .word 0; .long 0
    """
    with tiny_guest(source) as guest:
        assert guest.vcpu.run() == ExitReason.SHUTDOWN
        assert guest.vcpu.decode() == exits.Shutdown()


def test_emulation_failure_brings_the_instruction() -> None:
    # Executing from MMIO is what no KVM can do: there are no bytes to run.
    with tiny_guest("ljmp $0xf000, $0") as guest:
        assert guest.kvm.check_extension(Cap.INTERNAL_ERROR_DATA)
        assert guest.vcpu.run() == ExitReason.INTERNAL_ERROR
        error = guest.vcpu.decode()
        assert isinstance(error, exits.InternalError)
        assert error.is_emulation_failure
        assert guest.vcpu.get_sregs().cs.base == 0xF_0000


def test_registers_before_the_answer_are_those_from_before_the_instruction() -> None:
    with tiny_guest("mov $1, %eax; inb $0x60, %al; hlt") as guest:
        guest.vcpu.run()
        assert guest.vcpu.get_regs().rax == 1


def test_immediate_exit_completes_pending_io_and_returns() -> None:
    with tiny_guest("inb $0x60, %al; hlt") as guest:
        guest.vcpu.run()
        guest.vcpu.complete_io_in(b"\x42")
        guest.vcpu.immediate_exit = True
        assert guest.vcpu.immediate_exit
        assert guest.vcpu.run() == ExitReason.INTR
        assert guest.vcpu.decode() == exits.Intr()
        regs = guest.vcpu.get_regs()
        assert (regs.rax, regs.rip) == (0x42, CODE + 2)
        guest.vcpu.immediate_exit = False
        assert guest.vcpu.run() == ExitReason.HLT


def test_single_step_stops_after_each_instruction() -> None:
    with tiny_guest("nop; inc %ax; nop; hlt") as guest:
        assert guest.kvm.check_extension(Cap.SET_GUEST_DEBUG)
        guest.vcpu.set_guest_debug(
            constants.KVM_GUESTDBG_ENABLE | constants.KVM_GUESTDBG_SINGLESTEP
        )
        for address in (CODE + 1, CODE + 2, CODE + 3):
            assert guest.vcpu.run() == ExitReason.DEBUG
            stop = guest.vcpu.decode()
            assert isinstance(stop, exits.Debug)
            assert stop.exception == 1  # #DB, SDM 3A 6.15
            assert stop.pc == address
            assert stop.dr6 & 1 << 14  # DR6.BS, SDM 3B 18.2.3
        guest.vcpu.set_guest_debug(0)
        assert guest.vcpu.run() == ExitReason.HLT


@pytest.mark.skipif(
    is_emulated_by_qemu(), reason="QEMU's TCG does not arm a guest's debug registers under SVM"
)
def test_hardware_breakpoint_stops_at_its_address() -> None:
    with tiny_guest("nop; nop; here: inc %ax; hlt") as guest:
        here = CODE + 2
        control = constants.KVM_GUESTDBG_ENABLE | constants.KVM_GUESTDBG_USE_HW_BP
        enable_dr0 = 1 << 9 | 1 << 1  # DR7.GE and G0, on execution: SDM 3B 18.2.4
        guest.vcpu.set_guest_debug(control, [here, 0, 0, 0, 0, 0, 0, enable_dr0])
        assert guest.vcpu.run() == ExitReason.DEBUG
        stop = guest.vcpu.decode()
        assert isinstance(stop, exits.Debug)
        assert stop.pc == here
        assert stop.dr6 & 1  # DR6.B0


def test_sync_regs_carry_registers_both_ways() -> None:
    with tiny_guest("mov $0x1234, %ax; hlt; mov %bx, %cx; hlt") as guest:
        valid = guest.kvm.check_extension(Cap.SYNC_REGS)
        assert valid & constants.KVM_SYNC_X86_REGS
        page = guest.vcpu.run_page
        page.kvm_valid_regs = constants.KVM_SYNC_X86_REGS
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.sync_regs.regs.rax == 0x1234
        guest.vcpu.sync_regs.regs.rbx = 0x5678
        page.kvm_dirty_regs = constants.KVM_SYNC_X86_REGS
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.sync_regs.regs.rcx == 0x5678


def test_run_refuses_unknown_sync_regs() -> None:
    with tiny_guest("hlt") as guest:
        guest.vcpu.run_page.kvm_valid_regs = 1 << 63
        with pytest.raises(KvmError, match=r"^KVM_RUN: .*EINVAL.*kvm_valid_regs"):
            guest.vcpu.run()


FILTERED_MSR = 0x174  # IA32_SYSENTER_CS: any value may be written


def deny(flags: int) -> list[MsrFilterRange]:
    return [MsrFilterRange(flags, FILTERED_MSR, 1, b"\0")]


def test_filtered_rdmsr_exits_and_gets_the_answer() -> None:
    with tiny_guest(f"mov ${FILTERED_MSR}, %ecx; rdmsr; hlt") as guest:
        assert guest.vm.check_extension(Cap.X86_MSR_FILTER)
        guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, args=[constants.KVM_MSR_EXIT_REASON_FILTER])
        guest.vm.set_msr_filter(deny(constants.KVM_MSR_FILTER_READ))
        assert guest.vcpu.run() == ExitReason.X86_RDMSR
        assert guest.vcpu.decode() == exits.X86Rdmsr(
            index=FILTERED_MSR, reason=constants.KVM_MSR_EXIT_REASON_FILTER
        )
        guest.vcpu.complete_rdmsr(0x1111_2222_3333_4444)
        assert guest.vcpu.run() == ExitReason.HLT
        regs = guest.vcpu.get_regs()
        assert (regs.rdx, regs.rax) == (0x1111_2222, 0x3333_4444)


def test_filtered_wrmsr_exits_with_its_data() -> None:
    source = f"mov ${FILTERED_MSR}, %ecx; mov $7, %edx; mov $9, %eax; wrmsr; hlt"
    with tiny_guest(source) as guest:
        guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, args=[constants.KVM_MSR_EXIT_REASON_FILTER])
        guest.vm.set_msr_filter(deny(constants.KVM_MSR_FILTER_WRITE))
        assert guest.vcpu.run() == ExitReason.X86_WRMSR
        assert guest.vcpu.decode() == exits.X86Wrmsr(
            index=FILTERED_MSR,
            data=7 << 32 | 9,
            reason=constants.KVM_MSR_EXIT_REASON_FILTER,
        )
        guest.vcpu.complete_wrmsr(error=False)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_msrs([FILTERED_MSR]) == {FILTERED_MSR: 0}


def test_refused_rdmsr_raises_general_protection_in_the_guest() -> None:
    source = f"""
        movw $handler, 13 * 4     # the real-mode vector of #GP
        movw $0, 13 * 4 + 2
        mov ${FILTERED_MSR}, %ecx
        rdmsr
        hlt
        handler: mov $0x600d, %bx
        hlt
    """
    with tiny_guest(source) as guest:
        guest.vm.enable_cap(Cap.X86_USER_SPACE_MSR, args=[constants.KVM_MSR_EXIT_REASON_FILTER])
        guest.vm.set_msr_filter(deny(constants.KVM_MSR_FILTER_READ))
        assert guest.vcpu.run() == ExitReason.X86_RDMSR
        guest.vcpu.complete_rdmsr(None)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_regs().rbx == 0x600D


# Long enough for a KVM that looks up from emulating only now and then.
INTERRUPTIBLE = "sti; mov $0xfff0, %cx; 1: loop 1b; hlt"


def test_irq_window_opens_when_the_guest_enables_interrupts() -> None:
    with tiny_guest(f"cli; outb %al, $0x80; {INTERRUPTIBLE}") as guest:
        page = guest.vcpu.run_page
        assert guest.vcpu.run() == ExitReason.IO
        assert not page.if_flag
        assert not page.ready_for_interrupt_injection
        page.request_interrupt_window = 1
        assert guest.vcpu.run() == ExitReason.IRQ_WINDOW_OPEN
        assert guest.vcpu.decode() == exits.IrqWindowOpen()
        assert page.if_flag
        assert page.ready_for_interrupt_injection


def test_injected_interrupt_reaches_its_handler() -> None:
    source = f"""
        movw $handler, 0x30 * 4
        movw $0, 0x30 * 4 + 2
        {INTERRUPTIBLE}
        handler: mov $0x600d, %bx
        hlt
    """
    with tiny_guest(source) as guest:
        guest.vcpu.run_page.request_interrupt_window = 1
        assert guest.vcpu.run() == ExitReason.IRQ_WINDOW_OPEN
        guest.vcpu.run_page.request_interrupt_window = 0
        guest.vcpu.interrupt(0x30)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_regs().rbx == 0x600D


def test_nmi_reaches_its_handler() -> None:
    source = """
        movw $handler, 2 * 4      # NMI is vector 2
        movw $0, 2 * 4 + 2
        outb %al, $0x80
        hlt
        handler: mov $0x600d, %bx
        hlt
    """
    with tiny_guest(source) as guest:
        assert guest.kvm.check_extension(Cap.USER_NMI)
        assert guest.vcpu.run() == ExitReason.IO
        guest.vcpu.nmi()
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vcpu.get_regs().rbx == 0x600D


def test_run_page_reads_zeros_after_close() -> None:
    with tiny_guest("outb %al, $0x80") as guest:
        guest.vcpu.run()
        io = guest.vcpu.io
        assert io.port == 0x80
        guest.vcpu.close()
        assert io.port == 0
        assert bytes(guest.vcpu.buffer) == bytes(len(guest.vcpu.buffer))


def test_run_after_close_says_so() -> None:
    with tiny_guest("hlt") as guest:
        guest.vcpu.close()
        with pytest.raises(KvmError, match=r"^KVM_RUN: .*EBADF.*close\(\)"):
            guest.vcpu.run()
