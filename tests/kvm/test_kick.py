"""Stopping a vCPU that another thread runs: no kick is lost, at whatever moment it comes."""

from __future__ import annotations

import queue
import signal
import threading

import pytest
from builders.tiny_guest import tiny_guest

from kvm_bindings import ExitReason, KvmError, Vcpu, install_kick_signal
from kvm_bindings import vcpu as vcpu_module

pytestmark = pytest.mark.kvm

ROUNDS = 300
DEADLINE_S = 20.0


@pytest.fixture(autouse=True)
def _kick_signal() -> None:
    install_kick_signal()


class Runner(threading.Thread):
    """Runs a vCPU again and again; says when it is about to, and what came of it."""

    def __init__(self, vcpu: Vcpu) -> None:
        super().__init__(daemon=True)
        self.vcpu = vcpu
        self.about_to_run: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.reasons: queue.SimpleQueue[int] = queue.SimpleQueue()

    def run(self) -> None:
        for _ in range(ROUNDS):
            self.about_to_run.put(threading.get_native_id())
            reason = self.vcpu.run()
            self.vcpu.immediate_exit = False
            self.reasons.put(reason)


@pytest.mark.parametrize(
    ("source", "irqchip"),
    [("1: jmp 1b", False), ("cli; hlt", True)],
    ids=["in the guest", "halted in the kernel"],
)
def test_kick_ends_every_run(source: str, irqchip: bool) -> None:
    # The kick races with the way from about_to_run into the guest: before, in, after KVM_RUN.
    with tiny_guest(source, irqchip=irqchip) as guest:
        runner = Runner(guest.vcpu)
        runner.start()
        for _ in range(ROUNDS):
            assert guest.vcpu.kick(runner.about_to_run.get(timeout=DEADLINE_S))
            assert runner.reasons.get(timeout=DEADLINE_S) == ExitReason.INTR
        runner.join(DEADLINE_S)
        assert not runner.is_alive()


def test_kick_before_the_run_ends_it_at_once() -> None:
    with tiny_guest("1: jmp 1b") as guest:
        assert guest.vcpu.kick(threading.get_native_id())
        assert guest.vcpu.run() == ExitReason.INTR


def test_kick_of_an_ended_thread_says_so() -> None:
    ids: list[int] = []
    thread = threading.Thread(target=lambda: ids.append(threading.get_native_id()))
    thread.start()
    thread.join()
    with tiny_guest("hlt") as guest:
        assert not guest.vcpu.kick(ids[0])


def test_kick_refuses_a_pthread_id() -> None:
    with tiny_guest("hlt") as guest, pytest.raises(ValueError, match="get_native_id"):
        guest.vcpu.kick(threading.get_ident())


def test_kick_refuses_to_send_a_signal_that_has_no_handler(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vcpu_module, "_kick_signal", 0)
    with tiny_guest("hlt") as guest, pytest.raises(RuntimeError, match="install_kick_signal"):
        guest.vcpu.kick(threading.get_native_id())


def test_kick_signal_is_the_first_real_time_signal() -> None:
    assert install_kick_signal() == signal.SIGRTMIN


def test_kick_signal_that_we_were_started_to_ignore_is_free() -> None:
    ignored = signal.SIGRTMIN + 2
    before = signal.signal(ignored, signal.SIG_IGN)
    try:
        assert install_kick_signal(ignored) == ignored
    finally:
        signal.signal(ignored, before)
        install_kick_signal()


def test_kick_signal_with_another_handler_is_refused() -> None:
    taken = signal.SIGRTMIN + 1
    before = signal.signal(taken, lambda number, frame: None)
    try:
        with pytest.raises(KvmError, match=f"EBUSY.*signal {taken} is taken"):
            install_kick_signal(taken)
    finally:
        signal.signal(taken, before)


def test_signal_mask_keeps_a_blocked_signal_out_of_the_run() -> None:
    with tiny_guest("hlt") as guest:
        number = install_kick_signal()
        guest.vcpu.set_signal_mask([number])
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        try:
            signal.pthread_kill(threading.get_ident(), number)
            assert guest.vcpu.run() == ExitReason.HLT
            guest.vcpu.set_signal_mask([])
            guest.load("hlt")
            assert guest.vcpu.run() == ExitReason.INTR
            guest.vcpu.set_signal_mask(None)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [number])


def test_signal_mask_refuses_what_is_no_signal() -> None:
    with tiny_guest("hlt") as guest, pytest.raises(ValueError, match="expected 1 to 64"):
        guest.vcpu.set_signal_mask([65])
