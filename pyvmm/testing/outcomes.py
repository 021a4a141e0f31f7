"""Every way in which a guest can disappoint a test: an exception for each.

GuestFailure                 what the guest did, and not we
  KernelProblem                the kernel said on its console that something is wrong
    KernelPanic, KernelOops, KernelWarning, KernelBug, KasanReport, UbsanReport,
    LockdepReport, RcuStall, SoftLockup, HungTask
  GuestEnded                   the run was over before what the test waited for
    GuestPoweredOff, GuestReset, GuestExited, GuestHalted, TripleFault, EmulationFailure
  GuestHang                    no output, and the processors stood still
  GuestTimeout                 it moved, and did not get there in time
  CommandFailed                a command in the guest ended with a status that is not 0
VmmError                     pyvmm or this host failed: no verdict on the guest
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyvmm.outcome import Outcome

if TYPE_CHECKING:
    from pyvmm.outcome import RunResult
    from pyvmm.testing.agent import Completed


class GuestFailure(AssertionError):
    """The guest did not do what the test expects. ``report`` has all that is known of it."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


class KernelProblem(GuestFailure):
    """The kernel reported a problem on its console."""


class KernelPanic(KernelProblem):
    """ "Kernel panic - not syncing"."""


class KernelOops(KernelProblem):
    """An exception in kernel mode: "Oops", "general protection fault", "BUG: unable to handle"."""


class KernelBug(KernelProblem):
    """A BUG() was reached: "kernel BUG at"."""


class KernelWarning(KernelProblem):
    """A WARN() was reached: "WARNING: CPU: ... at"."""


class KasanReport(KernelProblem):
    """KASAN, KFENCE, KMSAN or KCSAN found a bad access: "BUG: KASAN: ..."."""


class UbsanReport(KernelProblem):
    """ "UBSAN: ..."."""


class LockdepReport(KernelProblem):
    """Lockdep found a possible deadlock, or a lock used wrongly."""


class RcuStall(KernelProblem):
    """ "rcu: INFO: ... detected stalls", or self-detected."""


class SoftLockup(KernelProblem):
    """ "watchdog: BUG: soft lockup"."""


class HungTask(KernelProblem):
    """ "INFO: task ... blocked for more than"."""


class GuestEnded(GuestFailure):
    """The run was over. ``result`` says how."""

    def __init__(self, message: str, report: str = "", result: RunResult | None = None) -> None:
        super().__init__(message, report)
        self.result = result


class GuestPoweredOff(GuestEnded):
    """It powered itself off."""


class GuestReset(GuestEnded):
    """It reset itself."""


class GuestExited(GuestEnded):
    """It ended the run through the debug exit port. ``result.number`` is its status."""


class GuestHalted(GuestEnded):
    """All its processors halted with interrupts off."""


class TripleFault(GuestEnded):
    """An exception while handling the double fault."""


class EmulationFailure(GuestEnded):
    """It ran into an instruction that this KVM cannot emulate."""


class GuestHang(GuestFailure):
    """It said nothing, and its processors did not move, for as long as the hang limit is."""


class GuestTimeout(GuestFailure):
    """It was still at work when the time was over."""


class CommandFailed(GuestFailure):
    """A command in the guest failed. ``completed`` has its status and its output."""

    def __init__(self, message: str, completed: Completed) -> None:
        super().__init__(message)
        self.completed = completed


class VmmError(Exception):
    """pyvmm, or this host, failed: nothing is known about the guest."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report


_ENDINGS: dict[Outcome, type[GuestEnded]] = {
    Outcome.POWERED_OFF: GuestPoweredOff,
    Outcome.RESET: GuestReset,
    Outcome.GUEST_EXIT: GuestExited,
    Outcome.HALTED: GuestHalted,
    Outcome.TRIPLE_FAULT: TripleFault,
    Outcome.EMULATION_FAILURE: EmulationFailure,
}


def failure_of(result: RunResult, waiting_for: str, report: str) -> GuestFailure | VmmError:
    """The exception for a run that ended with ``result`` while a test waited for something."""
    message = f"{result.summary}, while waiting for {waiting_for}"
    if result.outcome is Outcome.PANIC:
        return KernelPanic(message, report)
    if ending := _ENDINGS.get(result.outcome):
        return ending(message, report, result)
    if result.outcome is Outcome.STOPPED:
        return GuestEnded(message, report, result)
    if result.outcome is Outcome.TIMEOUT:
        return GuestTimeout(message, report)
    return VmmError(message, report)
