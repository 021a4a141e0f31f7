"""The program that boot tests run in guests, on this machine's own processor and kernel."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from builders.user_mode import build_user_mode, run_here

from pyvmm.testing.ktap import parse_ktap


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_user_mode(tmp_path_factory.mktemp("user_mode"))


def test_everything_is_right_on_this_machine(program: Path) -> None:
    done = run_here(program)
    assert done.returncode == 0, done.stdout
    assert {result.outcome for result in parse_ktap(done.stdout)} == {"passed"}, done.stdout


def test_what_is_not_right_is_told(program: Path) -> None:
    """A signal that stays blocked, since it was when the program started, never comes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        done = run_here(program)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    failed = {r.name: r.diagnostics for r in parse_ktap(done.stdout) if r.outcome == "failed"}
    assert done.returncode == 1
    assert "signals: expected 0x1, seen 0" in failed["signal to itself, every register restored"]
