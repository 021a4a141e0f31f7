"""Memory slots: what the guest writes, what the log says of it, and how long buffers are held."""

from __future__ import annotations

import mmap
from collections.abc import Iterator

import pytest
from builders.tiny_guest import MEMORY_BYTES, TinyGuest, tiny_guest

from kvm_bindings import Cap, ExitReason, Kvm, KvmError, Vm, constants, exits

pytestmark = pytest.mark.kvm

PAGES = MEMORY_BYTES // 4096
LOG = constants.KVM_MEM_LOG_DIRTY_PAGES


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Kvm() as kvm, kvm.create_vm() as vm:
        yield vm


def writer(*pages: int) -> str:
    """A guest that writes to these pages, then halts."""
    return "".join(f"movb $0xff, {page * 4096:#x};" for page in pages) + "hlt"


def run_up_to_clean_log(guest: TinyGuest) -> None:
    """Run to the first halt, so that the code's own page is mapped, and empty the log.

    KVM may log a page as dirty when the guest first reads or executes it: it maps it writable.
    """
    assert guest.vcpu.run() == ExitReason.HLT
    guest.vm.get_dirty_log(0)


def test_dirty_log_has_exactly_the_pages_written() -> None:
    with tiny_guest("hlt;" + writer(3, 9, 15), flags=LOG) as guest:
        run_up_to_clean_log(guest)
        assert guest.vcpu.run() == ExitReason.HLT
        assert guest.vm.dirty_pages(0) == [3, 9, 15]


def test_dirty_log_is_one_bit_for_each_page_lowest_first() -> None:
    with tiny_guest("hlt;" + writer(3, 9), flags=LOG) as guest:
        run_up_to_clean_log(guest)
        guest.vcpu.run()
        assert guest.vm.get_dirty_log(0) == bytes([1 << 3, 1 << (9 - 8), 0, 0, 0, 0, 0, 0])


def test_dirty_log_starts_anew_when_read() -> None:
    with tiny_guest(writer(3) + ";" + writer(4), flags=LOG) as guest:
        guest.vcpu.run()
        guest.vm.get_dirty_log(0)
        assert guest.vm.dirty_pages(0) == []
        guest.vcpu.run()
        assert guest.vm.dirty_pages(0) == [4]


def test_dirty_log_of_a_slot_without_one_is_refused() -> None:
    with (
        tiny_guest("hlt") as guest,
        pytest.raises(KvmError, match=r"^KVM_GET_DIRTY_LOG: .*ENOENT.*KVM_MEM_LOG_DIRTY_PAGES"),
    ):
        guest.vm.get_dirty_log(0)


def test_dirty_log_can_be_switched_on_for_memory_in_use() -> None:
    with tiny_guest(writer(3)) as guest:
        guest.vm.set_user_memory_region(0, 0, guest.memory, LOG)
        guest.vcpu.run()
        assert 3 in guest.vm.dirty_pages(0)


def manual_clear(guest: TinyGuest) -> None:
    assert guest.vm.check_extension(Cap.MANUAL_DIRTY_LOG_PROTECT2)
    guest.vm.enable_cap(
        Cap.MANUAL_DIRTY_LOG_PROTECT2, args=[constants.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE]
    )
    guest.vm.set_user_memory_region(0, 0, guest.memory, LOG)


def test_clear_dirty_log_clears_the_pages_named() -> None:
    with tiny_guest(writer(3, 9)) as guest:
        manual_clear(guest)
        guest.vcpu.run()
        assert {3, 9} <= set(guest.vm.dirty_pages(0))
        assert {3, 9} <= set(guest.vm.dirty_pages(0)), "reading alone must not clear"
        guest.vm.clear_dirty_log(0, 0, PAGES, bytes([1 << 3, 0]))
        assert 3 not in guest.vm.dirty_pages(0)
        assert 9 in guest.vm.dirty_pages(0)


def test_clear_dirty_log_from_an_odd_page_is_refused_with_the_remedy() -> None:
    with tiny_guest("hlt") as guest:
        manual_clear(guest)
        with pytest.raises(KvmError, match=r"^KVM_CLEAR_DIRTY_LOG: .*EINVAL.*multiple of 64"):
            guest.vm.clear_dirty_log(0, 1, PAGES - 1, bytes(2))


def test_clear_dirty_log_refuses_a_short_bitmap() -> None:
    with tiny_guest("hlt", flags=LOG) as guest, pytest.raises(ValueError, match="16 pages need 2"):
        guest.vm.clear_dirty_log(0, 0, PAGES, bytes(1))


def test_write_to_a_readonly_slot_exits_as_mmio() -> None:
    with tiny_guest("movb $0x5a, 0x3000; hlt", flags=constants.KVM_MEM_READONLY) as guest:
        assert guest.vm.check_extension(Cap.READONLY_MEM)
        assert guest.vcpu.run() == ExitReason.MMIO
        assert guest.vcpu.decode() == exits.MmioWrite(phys_addr=0x3000, data=b"\x5a")
        assert guest.memory[0x3000] == 0


def test_read_only_buffer_is_refused_for_a_writable_slot(vm: Vm) -> None:
    with mmap.mmap(-1, 4096, prot=mmap.PROT_READ) as memory:
        with pytest.raises(BufferError):
            vm.set_user_memory_region(0, 0, memory)
        vm.set_user_memory_region(0, 0, memory, constants.KVM_MEM_READONLY)
        vm.close()


def test_deleted_slot_is_mmio() -> None:
    with tiny_guest("movb $1, 0x3000; movb $2, 0x3000") as guest:
        with mmap.mmap(-1, 4096) as memory:
            guest.vm.set_user_memory_region(1, 0x1_0000, memory)
            guest.vm.set_user_memory_region(1, 0x1_0000, None)
        guest.load("mov $0x1000, %ax; mov %ax, %ds; movb $7, 0")
        assert guest.vcpu.run() == ExitReason.MMIO
        assert guest.vcpu.decode() == exits.MmioWrite(phys_addr=0x1_0000, data=b"\7")


def test_buffer_in_use_cannot_be_closed(vm: Vm) -> None:
    memory = mmap.mmap(-1, 4096)
    vm.set_user_memory_region(0, 0, memory)
    with pytest.raises(BufferError):
        memory.close()
    vm.close()
    memory.close()


def test_refused_buffer_is_let_go_and_the_old_one_kept(vm: Vm) -> None:
    first, second = mmap.mmap(-1, 8192), mmap.mmap(-1, 4096)
    vm.set_user_memory_region(0, 0, first)
    with pytest.raises(KvmError, match=r"^KVM_SET_USER_MEMORY_REGION: .*delete it first"):
        vm.set_user_memory_region(0, 0, second)
    second.close()
    with pytest.raises(BufferError):
        first.close()
    vm.close()
    first.close()


def test_memoryview_can_be_a_slot(vm: Vm) -> None:
    with mmap.mmap(-1, 3 * 4096) as memory, memoryview(memory) as whole:
        part = whole[4096:8192]
        vm.set_user_memory_region(0, 0, part, LOG)
        assert len(vm.get_dirty_log(0)) == 8
        vm.close()
        part.release()


def test_unaligned_memory_is_refused_with_the_remedy(vm: Vm) -> None:
    with (
        mmap.mmap(-1, 8192) as memory,
        memoryview(memory)[8:4104] as part,
        pytest.raises(KvmError, match=r"EINVAL.*multiples of 4 KiB"),
    ):
        vm.set_user_memory_region(0, 0, part)


def test_overlapping_slots_are_refused_with_the_remedy(vm: Vm) -> None:
    first, second = mmap.mmap(-1, 8192), mmap.mmap(-1, 4096)
    vm.set_user_memory_region(0, 0, first)
    with pytest.raises(KvmError, match=r"EEXIST.*overlap"):
        vm.set_user_memory_region(1, 4096, second)
    second.close()
    vm.close()
    first.close()


def test_memory_after_close_says_so(vm: Vm) -> None:
    vm.close()
    with (
        mmap.mmap(-1, 4096) as memory,
        pytest.raises(KvmError, match=r"EBADF.*after close\(\)"),
    ):
        vm.set_user_memory_region(0, 0, memory)


def test_tss_and_identity_map_go_below_4_gib(vm: Vm) -> None:
    vm.set_identity_map_addr(0xFFFB_C000)
    vm.set_tss_addr(0xFFFB_D000)


def test_identity_map_after_a_vcpu_is_refused_with_the_remedy() -> None:
    with (
        tiny_guest("hlt") as guest,
        pytest.raises(KvmError, match=r"EINVAL.*before the first vCPU"),
    ):
        guest.vm.set_identity_map_addr(0xFFFB_C000)
