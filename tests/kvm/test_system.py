"""/dev/kvm itself: what it answers, and what opening something else says."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvm_bindings import Cap, CpuidEntry, Kvm, KvmError, constants

pytestmark = pytest.mark.kvm


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm() as kvm:
        yield kvm


def test_api_version_is_the_stable_one(kvm: Kvm) -> None:
    assert kvm.api_version() == 12  # api.rst, 4.1


def test_check_extension_answers_yes_no_and_a_value(kvm: Kvm) -> None:
    assert kvm.check_extension(Cap.USER_MEMORY) == 1
    assert kvm.check_extension(Cap.NR_MEMSLOTS) >= 32
    assert kvm.check_extension(0x7FFF_FFFF) == 0


def test_vcpu_mapping_has_run_page_pio_page_and_ring(kvm: Kvm) -> None:
    ring_page = kvm.check_extension(Cap.COALESCED_MMIO)
    assert ring_page == constants.KVM_COALESCED_MMIO_PAGE_OFFSET
    assert kvm.vcpu_mmap_size() >= (ring_page + 1) * 4096


def test_supported_cpuid_names_the_host_vendor(kvm: Kvm) -> None:
    leaf0 = next(entry for entry in kvm.get_supported_cpuid() if entry.function == 0)
    registers = (leaf0.ebx, leaf0.edx, leaf0.ecx)  # SDM 2A, CPUID leaf 0
    vendor = b"".join(register.to_bytes(4, "little") for register in registers)
    assert f"vendor_id\t: {vendor.decode()}" in Path("/proc/cpuinfo").read_text()


def test_supported_cpuid_tells_subleaves_apart(kvm: Kvm) -> None:
    leaf_d = [entry for entry in kvm.get_supported_cpuid() if entry.function == 0xD]
    assert [entry.index for entry in leaf_d][:2] == [0, 1]
    assert all(entry.flags & constants.KVM_CPUID_FLAG_SIGNIFCANT_INDEX for entry in leaf_d)


def test_emulated_cpuid_is_a_list_of_entries(kvm: Kvm) -> None:
    assert kvm.check_extension(Cap.EXT_EMUL_CPUID)
    assert all(isinstance(entry, CpuidEntry) for entry in kvm.get_emulated_cpuid())


def test_msr_index_list_holds_guest_state_once_each(kvm: Kvm) -> None:
    indices = kvm.get_msr_index_list()
    assert 0x10 in indices  # IA32_TIME_STAMP_COUNTER
    assert 0x174 in indices  # IA32_SYSENTER_CS
    assert len(indices) == len(set(indices))


def test_msr_lists_grow_to_what_there_is(kvm: Kvm, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = kvm.get_msr_index_list()
    monkeypatch.setattr("kvm_bindings.system.MSR_LIST_START", 1)
    assert kvm.get_msr_index_list() == whole


def test_feature_msrs_can_be_read(kvm: Kvm) -> None:
    indices = kvm.get_msr_feature_index_list()
    assert indices
    assert list(kvm.get_feature_msrs(indices)) == indices


def test_feature_msrs_stop_at_the_first_unknown(kvm: Kvm) -> None:
    known = kvm.get_msr_feature_index_list()[0]
    assert list(kvm.get_feature_msrs([known, 0xDEAD_BEEF, known])) == [known]


def test_open_of_a_missing_device_says_what_to_load(tmp_path: Path) -> None:
    with pytest.raises(KvmError, match=r"^open .*/kvm: .*ENOENT.*modprobe") as caught:
        Kvm(str(tmp_path / "kvm"))
    assert caught.value.errno == errno.ENOENT
    assert caught.value.ioctl == f"open {tmp_path}/kvm"


def test_open_of_something_else_says_what_was_expected() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(KvmError, match=r"^KVM_GET_API_VERSION: .*ENOTTY.*expected /dev/kvm"):
        Kvm("/dev/null")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_unknown_vm_type_is_refused_with_the_remedy(kvm: Kvm) -> None:
    with pytest.raises(KvmError, match=r"^KVM_CREATE_VM: .*EINVAL.*type 0"):
        kvm.create_vm(0xFFFF)


def test_every_call_after_close_says_so(kvm: Kvm) -> None:
    kvm.close()
    kvm.close()
    for call in (kvm.api_version, kvm.create_vm, kvm.get_supported_cpuid, kvm.get_msr_index_list):
        with pytest.raises(KvmError, match=r"EBADF.*after close\(\)"):
            call()


def test_leaving_the_context_closes_every_descriptor() -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with Kvm() as kvm, kvm.create_vm() as vm, vm.create_vcpu(0):
        assert len(os.listdir("/proc/self/fd")) == descriptors + 3
    assert len(os.listdir("/proc/self/fd")) == descriptors
