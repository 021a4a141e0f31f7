"""KvmError: one line that names the call, the errno and the remedy."""

from __future__ import annotations

import errno
import pickle

import pytest

from kvm_bindings import KvmError
from kvm_bindings._abi import lib
from kvm_bindings.errors import _REMEDIES


def test_error_names_call_errno_and_remedy() -> None:
    assert str(KvmError("KVM_CREATE_VM", errno.EBUSY)) == (
        "KVM_CREATE_VM: Device or resource busy (EBUSY): another hypervisor holds the CPU's "
        "virtualization; stop it and retry"
    )


def test_error_is_an_oserror_with_its_parts() -> None:
    error = KvmError("KVM_CREATE_VM", errno.EBUSY)
    assert isinstance(error, OSError)
    assert (error.ioctl, error.errno) == ("KVM_CREATE_VM", errno.EBUSY)
    assert error.strerror == "Device or resource busy"
    assert error.remedy.startswith("another hypervisor")


def test_open_is_found_with_its_path() -> None:
    assert "usermod -aG kvm" in str(KvmError("open /dev/kvm", errno.EACCES))


def test_remedy_depends_on_the_call() -> None:
    assert (
        KvmError("KVM_SET_SREGS", errno.EINVAL).remedy
        != KvmError("KVM_CREATE_IRQCHIP", errno.EINVAL).remedy
    )


def test_unknown_combination_falls_back_on_the_errno() -> None:
    assert "closed" in KvmError("KVM_GET_REGS", errno.EBADF).remedy


def test_unknown_errno_falls_back_on_the_documentation() -> None:
    assert "api.rst" in KvmError("KVM_GET_REGS", errno.EXDEV).remedy


def test_given_remedy_wins() -> None:
    assert str(KvmError("KVM_GET_REGS", errno.EBADF, "do this")).endswith("(EBADF): do this")


def test_error_survives_pickling() -> None:
    error = KvmError("KVM_CREATE_VM", errno.EBUSY, "remedy")
    back = pickle.loads(pickle.dumps(error))
    assert str(back) == str(error)
    assert (back.ioctl, back.errno) == (error.ioctl, error.errno)


@pytest.mark.parametrize("call", sorted({call for call, _ in _REMEDIES} - {"open"}))
def test_every_remedy_is_for_an_ioctl_that_exists(call: str) -> None:
    assert getattr(lib, call)


@pytest.mark.parametrize("remedy", sorted(_REMEDIES.values()))
def test_every_remedy_is_one_line_without_a_full_stop(remedy: str) -> None:
    assert "\n" not in remedy
    assert not remedy.endswith(".")
