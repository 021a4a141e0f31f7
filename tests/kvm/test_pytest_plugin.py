"""The pytest plugin in a pytest of its own, with the embedded kernel: on any KVM."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from builders.host import kvm_is_software

pytestmark = [pytest.mark.kvm, pytest.mark.timeout(120)]


def run_pytest(
    directory: Path, test: str, *arguments: str, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    (directory / "test_it.py").write_text(f"import pytest\n{test}")
    options = ("-q", "-rA", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")
    return subprocess.run(
        [sys.executable, "-P", "-m", "pytest", *options, *arguments, "test_it.py"],
        cwd=directory,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=100,
    )


TALK = """
@pytest.mark.kernel("embedded")
def test_talk(vm_factory):
    vm = vm_factory(cmdline="console=ttyS0")
    vm.expect(r"\\n> ")
    vm.sendline("poweroff")
    assert vm.wait().exit_status == 0
"""


def test_guest_is_talked_to(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, TALK, "--pyvmm-ground=kvm")
    assert done.returncode == 0, done.stdout
    assert "PASSED test_it.py::test_talk[embedded]" in done.stdout


def test_software_kvm_is_a_reason_to_skip(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, TALK)
    assert done.returncode == 0, done.stdout
    expected = "this /dev/kvm emulates kernel mode" if kvm_is_software() else "1 passed"
    assert expected in done.stdout


def test_guests_stand_still_for_the_debugger(tmp_path: Path) -> None:
    failing = TALK.replace('vm.sendline("poweroff")', "assert 0")
    done = run_pytest(
        tmp_path, failing, "--pyvmm-ground=kvm", "--pdb", stdin="p vm.machine.paused\nq\n"
    )
    assert "(Pdb) True" in done.stdout


@pytest.mark.host
def test_matrix_and_options_make_the_ids(tmp_path: Path) -> None:
    test = """
@pytest.mark.kernel("a", "dir/b", cpus=[1, 2], mem="64M")
def test_it(vm): pass
"""
    ids = run_pytest(tmp_path, test, "--collect-only").stdout
    for name in ("a-1cpu", "a-2cpus", "b-1cpu", "b-2cpus"):
        assert f"test_it[{name}]" in ids
    ids = run_pytest(tmp_path, test, "--collect-only", "--kernel", "c").stdout
    assert "test_it[c-1cpu]" in ids
    assert "test_it[a-" not in ids


@pytest.mark.host
def test_marker_with_an_unknown_argument_is_refused(tmp_path: Path) -> None:
    test = "@pytest.mark.kernel(memory=1)\ndef test_it(vm): pass\n"
    done = run_pytest(tmp_path, test)
    assert done.returncode != 0
    assert "the marker kernel has no memory; expected cmdline, cpus, mem" in done.stdout
