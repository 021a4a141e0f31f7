"""The run loop between a real vCPU and devices that write down what they see."""

from __future__ import annotations

import struct

import pytest
from builders.tiny_guest import tiny_guest

from pyvmm.devices.bus import MmioBus, PortBus
from pyvmm.outcome import Outcome, RunEnded, RunResult
from pyvmm.vcpu_loop import VcpuLoop

pytestmark = pytest.mark.kvm

Access = tuple[str, int, int, int]
END = "out %al, $0xf4"


class Recorder:
    """A device that takes accesses whole, remembers them, and answers reads with ``answers``."""

    access_bytes = 8

    def __init__(self, answers: list[int] | None = None) -> None:
        self.seen: list[Access] = []
        self.answers = answers or []

    def read(self, offset: int, size: int) -> int:
        value = self.answers.pop(0)
        self.seen.append(("read", offset, size, value))
        return value

    def write(self, offset: int, size: int, value: int) -> None:
        self.seen.append(("write", offset, size, value))


class End:
    """Ends the run with what is written to it."""

    def read(self, offset: int, size: int) -> int:
        raise AssertionError("nobody reads here")

    def write(self, offset: int, size: int, value: int) -> None:
        raise RunEnded(RunResult(Outcome.GUEST_EXIT, "the end", value))


def run(
    source: str, device: Recorder, *, mmio: Recorder | None = None, coalesce: bool = False
) -> tuple[RunResult, bytes]:
    """Run ``source`` with ``device`` at port 0x500 on; the result, and the guest's memory."""
    ports, memory_bus = PortBus(), MmioBus()
    ports.add(0x500, 8, device, "recorder")
    ports.add(0xF4, 1, End(), "end")
    if mmio is not None:
        memory_bus.add(0xD_0000, 0x1000, mmio, "mmio recorder")
    with tiny_guest(source) as guest:
        if coalesce:
            guest.vm.register_coalesced_zone(0x500, 1, pio=True)
            guest.vm.register_coalesced_zone(0xD_0000, 8, pio=False)
        loop = VcpuLoop(guest.vcpu, ports, memory_bus, lambda gpa, size: b"")
        result = loop.run()
        return result, bytes(guest.memory)


def test_out_reaches_the_device_with_offset_size_and_value() -> None:
    device = Recorder()
    run(
        f"""mov $0x500, %dx; mov $0x11223344, %eax
        out %al, %dx; out %ax, %dx; out %eax, %dx
        mov $0x504, %dx; out %eax, %dx; {END}""",
        device,
    )
    assert device.seen == [
        ("write", 0, 1, 0x44),
        ("write", 0, 2, 0x3344),
        ("write", 0, 4, 0x1122_3344),
        ("write", 4, 4, 0x1122_3344),
    ]


def test_in_gives_the_guest_what_the_device_answers() -> None:
    device = Recorder([0xA5, 0xBEEF, 0xDEAD_C0DE])
    _, memory = run(
        f"""mov $0x500, %dx; xor %eax, %eax
        in %dx, %al; mov %eax, 0x4000
        in %dx, %ax; mov %eax, 0x4004
        in %dx, %eax; mov %eax, 0x4008; {END}""",
        device,
    )
    assert struct.unpack_from("<III", memory, 0x4000) == (0xA5, 0xBEEF, 0xDEAD_C0DE)
    assert [access[2] for access in device.seen] == [1, 2, 4]


def test_the_same_access_again_reaches_the_device_again() -> None:
    device = Recorder()
    run(
        f"mov $0x501, %dx; mov $3, %cx; again: mov %cl, %al; out %al, %dx; loop again; {END}",
        device,
    )
    assert device.seen == [("write", 1, 1, value) for value in (3, 2, 1)]


def test_outs_writes_each_element_to_the_same_port() -> None:
    device = Recorder()
    run(f"mov $0x502, %dx; mov $text, %si; mov $3, %cx; rep outsw; {END}; text: .ascii \"abcdef\"",
        device)  # fmt: skip
    values = [int.from_bytes(pair, "little") for pair in (b"ab", b"cd", b"ef")]
    assert device.seen == [("write", 2, 2, value) for value in values]


def test_ins_reads_each_element_from_the_same_port() -> None:
    device = Recorder([1, 2, 3, 4])
    _, memory = run(f"mov $0x500, %dx; mov $0x4000, %di; mov $4, %cx; rep insb; {END}", device)
    assert memory[0x4000:0x4005] == b"\x01\x02\x03\x04\x00"


def test_ports_without_a_device_read_as_all_ones() -> None:
    _, memory = run(
        f"mov $0x900, %dx; in %dx, %eax; mov %eax, 0x4000; out %eax, %dx; {END}", Recorder()
    )
    assert memory[0x4000:0x4004] == b"\xff\xff\xff\xff"


def test_an_access_over_the_end_of_a_device_is_cut() -> None:
    device = Recorder([0x77])
    _, memory = run(f"mov $0x507, %dx; in %dx, %ax; mov %ax, 0x4000; {END}", device)
    assert memory[0x4000:0x4002] == b"\x77\xff"
    assert device.seen == [("read", 7, 1, 0x77)]


def test_mmio_reaches_the_device() -> None:
    mmio = Recorder([0x5566_7788])
    _, memory = run(
        f"""mov $0xd000, %ax; mov %ax, %ds
        movl $0x11223344, 0x10; movw $0x5566, 0x24; mov 0x30, %eax
        xor %bx, %bx; mov %bx, %ds; mov %eax, 0x4000; {END}""",
        Recorder(),
        mmio=mmio,
    )
    assert mmio.seen == [
        ("write", 0x10, 4, 0x1122_3344),
        ("write", 0x24, 2, 0x5566),
        ("read", 0x30, 4, 0x5566_7788),
    ]
    assert memory[0x4000:0x4004] == b"\x88\x77\x66\x55"


def test_coalesced_writes_come_before_the_exit_that_follows_them() -> None:
    device = Recorder([0x99])
    run(
        f"""mov $0x500, %dx; mov $'a', %al; out %al, %dx; mov $'b', %al; out %al, %dx
        mov $0x501, %dx; in %dx, %al; mov $0x500, %dx; mov $'c', %al; out %al, %dx; {END}""",
        device,
        coalesce=True,
    )
    assert device.seen == [
        ("write", 0, 1, ord("a")),
        ("write", 0, 1, ord("b")),
        ("read", 1, 1, 0x99),
        ("write", 0, 1, ord("c")),
    ]


def test_coalesced_mmio_comes_in_order_too() -> None:
    mmio = Recorder()
    run(
        f"""mov $0xd000, %ax; mov %ax, %ds
        movl $1, 0; movl $2, 0; movw $3, 4; xor %ax, %ax; mov %ax, %ds; {END}""",
        Recorder(),
        mmio=mmio,
        coalesce=True,
    )
    assert mmio.seen == [("write", 0, 4, 1), ("write", 0, 4, 2), ("write", 4, 2, 3)]


def test_the_end_is_what_the_device_says() -> None:
    result, _ = run(f"mov $0x2a, %al; {END}", Recorder())
    assert (result.outcome, result.exit_status) == (Outcome.GUEST_EXIT, 0x2A)
