"""Vcpu: running a vCPU, and the pages it shares with us.

KVM_RUN enters the guest and returns when it needs userspace; why, and with what, stands in
``struct kvm_run``, the *run page*, which kernel and userspace both map. Answers (the bytes of an
``in``, of an MMIO read) are written to the run page before the next KVM_RUN, which completes the
instruction: until then the registers are those from before it.

The mapping, a few pages (KVM_GET_VCPU_MMAP_SIZE):

    page 0   struct kvm_run
    page 1   the data of port I/O, at ``io.data_offset`` from the start
    page 2   the ring of coalesced PIO and MMIO, the same page for all vCPUs of a VM

**Stopping a vCPU that another thread runs.** ``kick`` sets ``immediate_exit`` and sends a signal,
in this order, so that no moment is missed:

* in the guest, or blocked in KVM_RUN: the signal interrupts it, and it returns INTR;
* before KVM_RUN: the signal is spent on nothing, but KVM_RUN sees ``immediate_exit`` and returns
  INTR at once.

The runner, on INTR, clears ``immediate_exit`` *first* and looks *then* at what is wanted of it; the
kicker says what it wants first and kicks then. A kick after the clearing ends the next run. The
signal has a handler that does nothing (``install_kick_signal``), in C: Python's own handlers would
run in the main thread and wake everything there.

Kernel reference: Documentation/virt/kvm/api.rst, KVM_RUN and "The kvm_run structure".
"""

from __future__ import annotations

import errno

from kvm_bindings._abi import ffi, lib
from kvm_bindings.errors import KvmError
from kvm_bindings.vcpu_state import VcpuState

TYPE_CHECKING = False  # typing costs 9 ms to import
if TYPE_CHECKING:
    from kvm_bindings.exits import VcpuExit
    from kvm_bindings.structs import (
        kvm_coalesced_mmio_ring,
        kvm_run,
        kvm_run_io,
        kvm_run_mmio,
        kvm_sync_regs,
    )

_IO = ffi.offsetof("struct kvm_run", "io")
_MMIO_DATA = ffi.offsetof("struct kvm_run", "mmio", "data")
_MAX_NATIVE_THREAD_ID = 1 << 22  # PID_MAX_LIMIT, include/linux/threads.h

_kick_signal = 0


def install_kick_signal(signal_number: int | None = None) -> int:
    """Install the handler that ``Vcpu.kick`` needs, for the whole process; its signal's number.

    The default is SIGRTMIN. May be called again with the same number. Raises KvmError (EBUSY) if
    the signal has another handler.
    """
    global _kick_signal
    number = lib.kvm_default_kick_signal() if signal_number is None else signal_number
    result = lib.kvm_install_kick_handler(number)
    if result < 0:
        raise KvmError(
            "sigaction", -result, f"signal {number} is taken or no signal; choose another"
        )
    _kick_signal = number
    return number


class Vcpu(VcpuState):
    """A vCPU: its state (see VcpuState) and running it. Made by ``Vm.create_vcpu``.

    ``run_page``: the ``struct kvm_run``; ``io`` and ``mmio``: the parts of it that describe port
    I/O and MMIO, at hand for the run loop; ``buffer``: all shared pages as bytes. References to
    parts are valid as long as the Vcpu is; after ``close`` they read zeros.

    For loops in a hurry, since an element of a memoryview costs half of a field of a struct:
    ``io_header``, one 64-bit number: ``io``'s direction (bits 7:0), size (15:8), port (31:16) and
    count (63:32); and ``coalesced_indices``, the ring's first and last, which differ if coalesced
    writes are waiting.
    """

    __slots__ = (
        "_coalesced_run",
        "_ring",
        "buffer",
        "coalesced_indices",
        "io",
        "io_header",
        "mmio",
        "run_page",
    )

    run_page: kvm_run
    io: kvm_run_io
    mmio: kvm_run_mmio
    buffer: memoryview
    io_header: memoryview
    coalesced_indices: memoryview
    _ring: kvm_coalesced_mmio_ring

    def __init__(self, fd: int, vcpu_id: int, mmap_size: int, coalesced_offset: int) -> None:
        """Take over ``fd`` and map its pages. ``coalesced_offset``: of the ring; 0 if none."""
        super().__init__(fd, vcpu_id)
        address = ffi.new("void **")
        result = lib.kvm_map_shared(fd, mmap_size, address)
        if result < 0:
            super().close()
            raise KvmError("mmap of the vCPU", -result)
        start = address[0]
        # Unmapped when the last of page, buffer and their views is gone, not before.
        page = ffi.gc(
            ffi.cast("struct kvm_run *", start),
            lambda pointer: lib.kvm_unmap_shared(pointer, mmap_size),
            mmap_size,
        )
        self.run_page = page
        self.io = page.io
        self.mmio = page.mmio
        self.buffer = memoryview(ffi.buffer(page, mmap_size))
        if coalesced_offset:
            self._ring = ffi.cast("struct kvm_coalesced_mmio_ring *", start + coalesced_offset)
        else:
            self._ring = ffi.new("struct kvm_coalesced_mmio_ring *")  # first == last: empty
        self._coalesced_run = ffi.new("struct kvm_coalesced_run *")
        self.io_header = self.buffer[_IO : _IO + 8].cast("Q")
        self.coalesced_indices = memoryview(ffi.buffer(self._ring, 8)).cast("I")

    def close(self) -> None:
        """Close the file descriptor and give the shared pages back; zeros take their place.

        Not while another thread runs the vCPU: kick it first, and wait for it.
        """
        if self.fd < 0:
            return
        super().close()
        result = lib.kvm_detach_shared(self.run_page, len(self.buffer))
        if result < 0:
            raise KvmError("mmap of zeros", -result)

    # ---- running ----

    def run(self) -> int:
        """One KVM_RUN: the exit reason, to be compared with ExitReason.

        A signal, or ``immediate_exit``, gives ExitReason.INTR. Raises KvmError for anything else
        that kept the guest from running.
        """
        reason = lib.kvm_run_once(self.fd, self.run_page)
        if reason < 0:
            raise KvmError("KVM_RUN", -reason)
        return reason

    def decode(self) -> VcpuExit:
        """The last exit with its payload, as a dataclass of ``kvm_bindings.exits``."""
        from kvm_bindings.exits import decode

        return decode(self)

    @property
    def immediate_exit(self) -> bool:
        """Whether the next KVM_RUN returns INTR at once, having completed pending I/O only."""
        return self.run_page.immediate_exit != 0

    @immediate_exit.setter
    def immediate_exit(self, value: bool) -> None:
        self.run_page.immediate_exit = value

    def kick(self, native_thread_id: int) -> bool:
        """Make the thread's KVM_RUN of this vCPU return INTR, now or as soon as it starts.

        ``native_thread_id``: ``threading.get_native_id()`` of the thread that runs this vCPU.
        False: that thread has ended. May be called from any thread; the module's docstring has
        the protocol. Raises ValueError for what cannot be such an id, RuntimeError before
        ``install_kick_signal``: the signal would end the process.
        """
        if not 0 < native_thread_id <= _MAX_NATIVE_THREAD_ID:
            raise ValueError(
                f"{native_thread_id} is no native thread id; expected threading.get_native_id(), "
                "not get_ident()"
            )
        if not _kick_signal:
            raise RuntimeError("no kick signal; call install_kick_signal() once before kick()")
        self.run_page.immediate_exit = 1
        result = lib.kvm_signal_thread(native_thread_id, _kick_signal)
        if result < 0 and result != -errno.ESRCH:
            raise KvmError("tgkill", -result)
        return result == 0

    @property
    def sync_regs(self) -> kvm_sync_regs:
        """Registers in the run page: read and written with no ioctl (Cap.SYNC_REGS).

        Set ``run_page.kvm_valid_regs`` (KVM_SYNC_X86_...) once: each exit leaves these here. Set
        ``run_page.kvm_dirty_regs`` after a change: the next run takes these from here.
        """
        return self.run_page.s.regs

    # ---- answering exits ----

    def io_data(self) -> memoryview:
        """The data of the port I/O exit: ``io.size * io.count`` bytes, in the shared page.

        For an ``out`` they are there to read; for an ``in``, to be written.
        """
        start = self.io.data_offset
        return self.buffer[start : start + self.io.size * self.io.count]

    def complete_io_in(self, data: bytes) -> None:
        """Answer a port read. Raises ValueError unless there are ``size * count`` bytes."""
        self.io_data()[:] = data

    def complete_mmio_read(self, data: bytes) -> None:
        """Answer an MMIO read. Raises ValueError unless there are ``len`` bytes."""
        self.buffer[_MMIO_DATA : _MMIO_DATA + self.mmio.len] = data

    def complete_rdmsr(self, value: int | None) -> None:
        """Answer an X86_RDMSR exit: the value, or None for #GP."""
        msr = self.run_page.msr
        msr.error = value is None
        msr.data = value or 0

    def complete_wrmsr(self, *, error: bool) -> None:
        """Answer an X86_WRMSR exit: taken, or #GP."""
        self.run_page.msr.error = error

    def complete_hypercall(self, result: int) -> None:
        """Answer a HYPERCALL exit: what the guest finds in rax."""
        self.run_page.hypercall.ret = result

    # ---- coalesced I/O ----

    @property
    def coalesced_pending(self) -> bool:
        """Whether coalesced writes are waiting. Cheap: two reads of shared memory."""
        first, last = self.coalesced_indices
        return first != last

    def take_coalesced(self) -> tuple[int, int, bool, bytes] | None:
        """The oldest coalesced writes that are alike: address, length, is it a port, their data.

        One write to a port of length 1 after the other comes as one bytes object, in the order
        the guest made them. None: the ring is empty; else call again, more may be waiting.

        The ring is the VM's, not the vCPU's: any vCPU's writes are in it, any Vcpu object of the
        VM can take them, **one at a time**: with several vCPU threads, hold a lock. Take before
        handling any other exit, or the guest's writes change order; and take when the guest is
        idle, or they wait for its next exit. A full ring (169 entries) makes exits again.
        """
        run = self._coalesced_run
        taken = lib.kvm_take_coalesced(self._ring, run)
        if taken == 0:
            return None
        if taken < 0:
            raise KvmError(
                "the coalesced ring", -taken, "its indices are out of range; was it written to?"
            )
        data = bytes(ffi.buffer(run.data, run.len * taken))
        return run.phys_addr, run.len, run.pio != 0, data
