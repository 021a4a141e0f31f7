"""Which kind of KVM this is, checked against what the processor itself says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from builders.cli import pyvmm
from builders.host import kvm_is_software

from kvm_bindings import Kvm
from pyvmm.capabilities import WANTED, check_required
from pyvmm.errors import HostError
from pyvmm.probe import Virtualization, probe_virtualization, syscall_enters_the_kernel

pytestmark = pytest.mark.kvm


def test_hardware_virtualization_is_found_where_the_processor_has_it() -> None:
    with Kvm() as kvm:
        found = probe_virtualization(kvm)
    flags = set(Path("/proc/cpuinfo").read_text().split())
    has_hardware = bool(flags & {"vmx", "svm"})
    assert found is (Virtualization.HARDWARE if has_hardware else Virtualization.SOFTWARE)


def test_required_capabilities_are_there() -> None:
    with Kvm() as kvm:
        check_required(kvm)


def test_a_missing_capability_is_named() -> None:
    class Poor(Kvm):
        def check_extension(self, cap: int) -> int:
            return 0

    with Poor() as kvm, pytest.raises(HostError, match=f"no KVM_CAP_{WANTED[0].name}"):
        check_required(kvm)


def test_system_calls_enter_the_kernel_where_the_processor_runs_it() -> None:
    if kvm_is_software():
        pytest.skip("this KVM emulates the guest's kernel mode: either may be")
    with Kvm() as kvm:
        assert syscall_enters_the_kernel(kvm)


def test_doctor_says_that_guests_can_run_and_how() -> None:
    result = pyvmm("doctor")
    assert (result.returncode, result.stderr) == (0, b"")
    report = result.stdout.decode()
    assert re.search(r"^  ok  KVM API version 12$", report, re.MULTILINE)
    assert re.search(r"^  ok  KVM_CAP_IMMEDIATE_EXIT: 1 ", report, re.MULTILINE)
    assert re.search(r"^  (ok|--)  (hardware|software) virtualization: ", report, re.MULTILINE)
    assert report.endswith("This machine can run guests: try `pyvmm run`.\n")
