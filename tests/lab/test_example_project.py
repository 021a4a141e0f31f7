"""tests/examples/kernel_tests, a project of its own, run as its owner would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[1] / "examples" / "kernel_tests"

pytestmark = [pytest.mark.boot, pytest.mark.timeout(300)]


def run_pytest(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-P", "-m", "pytest", "-p", "no:cacheprovider", *arguments]
    wide = {**os.environ, "COLUMNS": "200"}  # or the summary's lines are cut
    result = subprocess.run(
        command, cwd=PROJECT, env=wide, capture_output=True, text=True, timeout=280
    )
    return result.returncode, result.stdout


def test_two_debian_kernels_answer(tmp_path: Path) -> None:
    junit = tmp_path / "junit.xml"
    status, output = run_pytest(f"--junitxml={junit}")
    assert status == 0, output
    cases = {str(case.get("name")): case for case in ET.parse(junit).iter("testcase")}
    assert sorted(cases) == [
        "test_console_and_files[debian:6.1-cloud]",
        "test_console_and_files[debian:6.12-cloud]",
        "test_three_commands[debian:6.1-cloud]",
        "test_three_commands[debian:6.12-cloud]",
    ]
    for case in cases.values():
        (told,) = case.iter("property")
        assert told.get("name") == "guest: configuration"
        assert "pyvmm run --kernel debian:6.1" in str(told.get("value"))


def test_failures_are_reported_as_what_they_are() -> None:
    status, output = run_pytest("failing", "-rA", "--tb=short")
    assert status == 1, output
    assert re.search(r"FAILED .*test_panic.* - .*KernelPanic: .*sysrq triggered crash", output)
    assert re.search(r"FAILED .*test_hang.* - .*GuestHang: no output and no movement", output)
    assert re.search(r"SUBFAILED\[multiplication\] .*test_ktap", output), output
    assert "expected 4, got 5" in output
    # The panic's report: registers, the symbolised stack, the last lines, how to do it again.
    assert "vCPU 0:" in output
    assert "sysrq_handle_crash" in output
    assert "the last console lines:" in output
    assert "pyvmm run --kernel debian:6.1-cloud" in output
