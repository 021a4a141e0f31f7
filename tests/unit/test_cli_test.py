"""`pyvmm test`: what is told of each ending, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyvmm.cli.main import main
from pyvmm.cli.test import verdict
from pyvmm.outcome import Outcome, RunResult


@pytest.mark.parametrize(
    ("outcome", "number", "status"),
    [
        (Outcome.GUEST_EXIT, 0, 0),
        (Outcome.GUEST_EXIT, 124, 124),
        (Outcome.GUEST_EXIT, 125, 125),
        (Outcome.GUEST_EXIT, 126, 1),
        (Outcome.GUEST_EXIT, 255, 1),
        (Outcome.POWERED_OFF, 0, 1),
        (Outcome.RESET, 0, 1),
        (Outcome.PANIC, 0, 1),
        (Outcome.HALTED, 0, 1),
        (Outcome.TRIPLE_FAULT, 0, 1),
        (Outcome.TIMEOUT, 0, 1),
        (Outcome.EMULATION_FAILURE, 0, 125),
        (Outcome.KVM_FAILURE, 0, 125),
        (Outcome.ERROR, 0, 125),
        (Outcome.SIGNAL, 2, 130),
    ],
)
def test_verdict_is_what_git_bisect_takes(outcome: Outcome, number: int, status: int) -> None:
    assert verdict(RunResult(outcome, "", number)) == status


def test_script_is_demanded_and_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["test"]) == 2
    assert "--init" in capsys.readouterr().err
    assert main(["test", "--init", str(tmp_path / "none")]) == 2
    assert "there is no such file; expected a shell script" in capsys.readouterr().err


def test_initrd_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script"
    script.write_text("exit 0")
    assert main(["test", "--init", str(script), "--initrd", "x"]) == 2
    assert "the script runs in an initramfs of ours" in capsys.readouterr().err


def test_command_behind_two_dashes_is_demanded(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--"]) == 2
    assert "nothing stands behind --" in capsys.readouterr().err
    assert main(["doctor", "--", "x"]) == 2
