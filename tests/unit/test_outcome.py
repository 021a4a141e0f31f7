"""Exit statuses: one for each way to end, told apart by programs."""

from __future__ import annotations

import pytest

from pyvmm.outcome import Outcome, RunResult


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_has_a_status_that_a_process_can_end_with(outcome: Outcome) -> None:
    assert 0 <= RunResult(outcome, "", 1).exit_status <= 255


def test_failures_are_told_apart() -> None:
    numberless = set(Outcome) - {Outcome.GUEST_EXIT, Outcome.SIGNAL}
    clean = {Outcome.POWERED_OFF, Outcome.RESET, Outcome.STOPPED}
    statuses = [RunResult(outcome, "").exit_status for outcome in numberless - clean]
    assert len(set(statuses)) == len(statuses)
    assert not {0, 2} & set(statuses)
    assert {RunResult(outcome, "").exit_status for outcome in clean} == {0}


@pytest.mark.parametrize(("written", "status"), [(0, 0), (7, 7), (255, 255), (256, 0)])
def test_guest_exit_status_is_the_guests(written: int, status: int) -> None:
    assert RunResult(Outcome.GUEST_EXIT, "", written).exit_status == status


def test_signal_status_is_the_shells() -> None:
    assert RunResult(Outcome.SIGNAL, "", 15).exit_status == 143
