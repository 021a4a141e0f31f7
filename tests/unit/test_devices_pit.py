"""The interval timer: what its counters show (Intel 8254 datasheet), and when it ticks."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from builders.irq import RecordingIrq
from hypothesis import given
from hypothesis import strategies as st

from pyvmm.devices.pit import PIT_HZ, Pit, PortB
from pyvmm.errors import HostError

CONTROL = 3
HOUR_NS = 3600 * 10**9


class UntickedPit(Pit):
    """Its thread does nothing: when there is a tick the tests say."""

    def _run(self) -> None:
        pass


class Timer:
    """A PIT whose time stands still unless it is told to pass; ``floor_ticks`` as its own ticks."""

    def __init__(self, floor_ticks: int = 0) -> None:
        self.now_ns = HOUR_NS
        self.irq = RecordingIrq()
        self.pit = UntickedPit(self.irq, ticks_to_ns(floor_ticks), lambda: self.now_ns)
        self.port_b = PortB(self.pit)
        self._began_ns = self.now_ns

    def program(self, counter: int, mode: int, count: int, *, bcd: bool = False) -> None:
        """Control word, then the count's low and high byte."""
        self.pit.write(CONTROL, 1, counter << 6 | 0x30 | mode << 1 | bcd)
        self.pit.write(counter, 1, count & 0xFF)
        self.pit.write(counter, 1, count >> 8)

    def pass_ticks(self, ticks: int) -> None:
        self.now_ns += ticks_to_ns(ticks)

    def count(self, counter: int) -> int:
        low = self.pit.read(counter, 1)
        return self.pit.read(counter, 1) << 8 | low

    def status(self, counter: int) -> int:
        self.pit.write(CONTROL, 1, 0xE0 | 2 << counter)
        return self.pit.read(counter, 1)

    def out(self, counter: int) -> bool:
        return bool(self.status(counter) & 0x80)

    def next_tick(self) -> int | None:
        """How many ticks of its own after its making the next interrupt is due."""
        due_ns = self.pit.next_tick_ns()
        return None if due_ns is None else (due_ns - self._began_ns) * PIT_HZ // 10**9


def ticks_to_ns(ticks: int) -> int:
    return -(-ticks * 10**9 // PIT_HZ)


@pytest.fixture
def timer() -> Iterator[Timer]:
    timer = Timer()
    yield timer
    timer.pit.close()


# Counting.


@pytest.mark.parametrize(
    ("mode", "shown"),
    [
        (0, [100, 99, 1, 0, 0xFFFF]),
        (2, [100, 99, 1, 100, 99]),
        (3, [100, 98, 2, 100, 98]),
        (4, [100, 99, 1, 0, 0xFFFF]),
    ],
)
def test_count_goes_down_as_its_mode_says(mode: int, shown: list[int], timer: Timer) -> None:
    timer.program(0, mode, 100)
    seen = []
    for ticks in (0, 1, 98, 1, 1):
        timer.pass_ticks(ticks)
        seen.append(timer.count(0))
    assert seen == shown


@pytest.mark.parametrize(
    ("mode", "count", "levels"),
    [
        (0, 3, "LLLHHHHH"),
        (2, 3, "HHLHHLHH"),
        (3, 4, "HHLLHHLL"),
        (3, 5, "HHHLLHHH"),
        (4, 3, "HHHLHHHH"),
    ],
)
def test_out_is_what_the_mode_makes_of_the_count(
    mode: int, count: int, levels: str, timer: Timer
) -> None:
    timer.program(0, mode, count)
    seen = ""
    for _ in levels:
        seen += "H" if timer.out(0) else "L"
        timer.pass_ticks(1)
    assert seen == levels


def test_control_word_sets_out_and_waits_for_a_count(timer: Timer) -> None:
    for mode in range(6):
        timer.pit.write(CONTROL, 1, 0x30 | mode << 1)
        null_count = 0x40
        assert timer.status(0) == (0x80 if mode else 0) | null_count | 0x30 | mode << 1
        assert timer.pit.next_tick_ns() is None


def test_modes_6_and_7_are_2_and_3(timer: Timer) -> None:
    for mode in (6, 7):
        timer.pit.write(CONTROL, 1, 0x30 | mode << 1)
        assert timer.status(0) >> 1 & 7 == mode  # as it was written
        timer.program(0, mode, 4)
        assert timer.next_tick() == 4
        timer.pass_ticks(2)
        assert timer.out(0) is (mode == 6)
        timer = Timer()


def test_count_of_0_is_the_largest(timer: Timer) -> None:
    timer.program(0, 2, 0)
    assert timer.next_tick() == 0x1_0000
    timer.program(0, 2, 0, bcd=True)
    assert timer.next_tick() == 10_000


def test_bcd_counts_in_decimal_digits(timer: Timer) -> None:
    timer.program(0, 2, 0x1000, bcd=True)
    timer.pass_ticks(1)
    assert timer.count(0) == 0x0999


def test_count_of_a_single_byte_leaves_the_other_0(timer: Timer) -> None:
    timer.pit.write(CONTROL, 1, 0x14)  # counter 0, low byte only, mode 2
    timer.pit.write(0, 1, 0x80)
    assert timer.next_tick() == 0x80
    assert [timer.pit.read(0, 1), timer.pit.read(0, 1)] == [0x80, 0x80]
    timer.pit.write(CONTROL, 1, 0x24)  # high byte only
    timer.pit.write(0, 1, 0x80)
    assert timer.next_tick() == 0x8000
    assert timer.pit.read(0, 1) == 0x80


def test_odd_square_wave_counts_down_from_the_even_number_twice(timer: Timer) -> None:
    timer.program(0, 3, 5)
    seen = []
    for _ in range(6):
        seen.append(timer.count(0))
        timer.pass_ticks(1)
    assert seen == [4, 2, 0, 4, 2, 4]


def test_count_that_waits_for_its_gate_is_not_in_the_counter(timer: Timer) -> None:
    timer.program(2, 1, 100)
    assert timer.status(2) & 0x40
    timer.port_b.write(0, 1, 0x01)
    assert not timer.status(2) & 0x40


def test_host_that_gives_no_thread_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise HostError("no thread")

    monkeypatch.setattr("pyvmm.devices.pit.start_thread", refuse)
    timer = Timer()
    with pytest.raises(HostError):
        timer.program(0, 2, 100)
    timer.pit.close()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 255), st.integers(0, 10**15))))
def test_no_guest_gets_more_than_bytes_out_of_it(accesses: list[tuple[int, int, int]]) -> None:
    timer = Timer()
    for port, value, wait_ns in accesses:
        timer.now_ns += wait_ns
        device, offset = (timer.pit, port) if port < 4 else (timer.port_b, 0)
        device.write(offset, 1, value)
        assert 0 <= device.read(offset, 1) <= 0xFF
        timer.pit.next_tick_ns()
    timer.pit.close()


def test_first_byte_of_two_stops_mode_0(timer: Timer) -> None:
    timer.program(0, 0, 100)
    timer.pass_ticks(100)
    assert timer.out(0)
    timer.pit.write(0, 1, 50)
    assert not timer.out(0)
    assert timer.pit.next_tick_ns() is None
    timer.pit.write(0, 1, 0)
    assert timer.next_tick() == 150


# Reading what was kept.


def test_latched_count_stays_until_it_is_read(timer: Timer) -> None:
    timer.program(0, 2, 0x1234)
    timer.pit.write(CONTROL, 1, 0x00)
    timer.pass_ticks(0x234)
    timer.pit.write(CONTROL, 1, 0x00)  # ignored: the first waits to be read
    assert timer.count(0) == 0x1234
    assert timer.count(0) == 0x1000


def test_read_back_gives_status_then_count(timer: Timer) -> None:
    timer.program(2, 3, 0x200)
    timer.program(0, 2, 0x100)
    timer.pit.write(CONTROL, 1, 0xC0 | 0b0010)  # count and status of counter 0
    timer.pass_ticks(1)
    assert timer.pit.read(0, 1) == 0x80 | 0x30 | 2 << 1
    assert timer.count(0) == 0x100
    assert timer.count(0) == 0xFF
    assert timer.count(2) == 0x200  # its gate is closed, and nothing of it was kept


def test_control_word_cannot_be_read(timer: Timer) -> None:
    assert timer.pit.read(CONTROL, 1) == 0xFF


# Counter 2 and port B.


def test_port_b_opens_the_gate_of_counter_2(timer: Timer) -> None:
    timer.program(2, 0, 1000)
    timer.pass_ticks(100)
    assert timer.count(2) == 1000
    timer.port_b.write(0, 1, 0x01)
    timer.pass_ticks(100)
    assert timer.count(2) == 900
    timer.port_b.write(0, 1, 0x00)
    timer.pass_ticks(100)
    assert timer.count(2) == 900
    timer.port_b.write(0, 1, 0x01)
    timer.pass_ticks(900)
    assert timer.port_b.read(0, 1) & 0x21 == 0x21


def test_gate_starts_a_period_anew(timer: Timer) -> None:
    timer.port_b.write(0, 1, 0x01)
    timer.program(2, 2, 1000)
    timer.pass_ticks(100)
    timer.port_b.write(0, 1, 0x00)
    timer.port_b.write(0, 1, 0x01)
    timer.pass_ticks(10)
    assert timer.count(2) == 990


@pytest.mark.parametrize(("mode", "levels"), [(1, "HLLLH"), (5, "HHHHL")])
def test_gate_starts_modes_1_and_5(mode: int, levels: str, timer: Timer) -> None:
    timer.program(2, mode, 3)
    timer.pass_ticks(100)
    seen = "H" if timer.out(2) else "L"
    timer.port_b.write(0, 1, 0x01)
    for _ in range(4):
        seen += "H" if timer.out(2) else "L"
        timer.pass_ticks(1)
    assert seen == levels


def test_port_b_shows_that_time_goes_on(timer: Timer) -> None:
    timer.port_b.write(0, 1, 0x02)
    seen = [timer.port_b.read(0, 1) & 0x1F for _ in range(4)]
    assert sorted(set(seen)) == [0x02, 0x12]


# Ticks.


def tick_at(timer: Timer, ticks: int) -> None:
    timer.pass_ticks(ticks)
    timer.pit.tick()


def test_periodic_counter_ticks_each_period(timer: Timer) -> None:
    timer.program(0, 2, 1000)
    assert timer.next_tick() == 1000
    tick_at(timer, 1000)
    assert timer.next_tick() == 2000
    assert timer.irq.levels == [True, False]


def test_one_shot_counter_ticks_once(timer: Timer) -> None:
    timer.program(0, 0, 1000)
    assert timer.next_tick() == 1000
    tick_at(timer, 1000)
    assert timer.pit.next_tick_ns() is None


def test_ticks_that_were_missed_are_not_made_up_for(timer: Timer) -> None:
    timer.program(0, 2, 1000)
    tick_at(timer, 5400)
    assert timer.next_tick() == 6000


def test_new_count_takes_the_place_of_the_old(timer: Timer) -> None:
    timer.program(0, 4, 1000)
    timer.pass_ticks(999)
    timer.program(0, 4, 1000)
    assert timer.next_tick() == 999 + 1000 + 1  # mode 4: OUT rises a tick after the count is 0


def test_floor_keeps_ticks_apart() -> None:
    timer = Timer(floor_ticks=5500)
    timer.program(0, 2, 1000)
    tick_at(timer, 1000)  # the first has none before it
    assert timer.next_tick() == 6500
    tick_at(timer, 5500)
    assert timer.next_tick() == 12_000
    timer.pit.floor_ns = 0
    assert timer.next_tick() == 7000
    timer.pit.close()


def test_floor_does_not_delay_who_has_waited_longer() -> None:
    timer = Timer(floor_ticks=5000)
    timer.program(0, 0, 1000)
    tick_at(timer, 1000)
    timer.pass_ticks(10_000)
    timer.program(0, 0, 100)
    assert timer.next_tick() == 11_100
    timer.pit.close()


def test_ticks_come_by_themselves_until_it_is_closed() -> None:
    irq = RecordingIrq()
    pit = Pit(irq, floor_ns=0)
    threads_before = threading.active_count()
    pit.write(CONTROL, 1, 0x34)
    pit.write(0, 1, 0x00)
    pit.write(0, 1, 0x10)
    for _ in range(3):
        assert irq.edge.wait(10)
        irq.edge.clear()
    pit.close()
    assert threading.active_count() == threads_before
    assert irq.levels[:2] == [True, False]


def test_pit_that_was_not_programmed_has_no_thread() -> None:
    threads_before = threading.active_count()
    pit = Pit(RecordingIrq(), floor_ns=0)
    assert threading.active_count() == threads_before
    pit.close()
