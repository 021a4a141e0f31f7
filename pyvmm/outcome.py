"""How a run ended: one value for each way, each with its own exit status.

| outcome           | exit status | what happened                                              |
|-------------------|-------------|------------------------------------------------------------|
| POWERED_OFF       | 0           | the guest powered itself off (ACPI PM1 control register)   |
| RESET             | 0           | the guest reset itself (i8042, as Linux's ``reboot=k``)    |
| STOPPED           | 0           | the user left (Ctrl-A x), or the program called ``stop()`` |
| GUEST_EXIT        | the guest's | the guest wrote a status to the debug exit port            |
| ERROR             | 1           | an error of ours, or of this machine                       |
| PANIC             | 3           | the guest's kernel panicked                                |
| HALTED            | 4           | halted with interrupts off: nothing can wake it            |
| TRIPLE_FAULT      | 5           | an exception while handling the double fault               |
| EMULATION_FAILURE | 6           | an instruction that neither KVM nor pyvmm can emulate      |
| KVM_FAILURE       | 7           | KVM could not go on for another reason                     |
| TIMEOUT           | 124         | ``--timeout`` ran out (as timeout(1) says it)              |
| SIGNAL            | 128 + n     | signal n ended pyvmm (as a shell says it)                  |

Status 2 is not here: it is an error in what the user gave, found before anything ran.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Outcome(enum.Enum):
    """The ways in which a run can end."""

    POWERED_OFF = "powered-off"
    RESET = "reset"
    STOPPED = "stopped"
    GUEST_EXIT = "guest-exit"
    ERROR = "error"
    PANIC = "panic"
    HALTED = "halted"
    TRIPLE_FAULT = "triple-fault"
    EMULATION_FAILURE = "emulation-failure"
    KVM_FAILURE = "kvm-failure"
    TIMEOUT = "timeout"
    SIGNAL = "signal"


_EXIT_STATUS = {
    Outcome.POWERED_OFF: 0,
    Outcome.RESET: 0,
    Outcome.STOPPED: 0,
    Outcome.ERROR: 1,
    Outcome.PANIC: 3,
    Outcome.HALTED: 4,
    Outcome.TRIPLE_FAULT: 5,
    Outcome.EMULATION_FAILURE: 6,
    Outcome.KVM_FAILURE: 7,
    Outcome.TIMEOUT: 124,
}


class RunResult(NamedTuple):
    """How a run ended."""

    outcome: Outcome
    summary: str
    """One line for people, without a full stop."""
    number: int = 0
    """The guest's own status for GUEST_EXIT, the signal for SIGNAL."""
    report: str = ""
    """More lines for people: the registers where they help."""

    @property
    def exit_status(self) -> int:
        """What the ``pyvmm`` process ends with: see the table above."""
        if self.outcome is Outcome.GUEST_EXIT:
            return self.number & 0xFF
        if self.outcome is Outcome.SIGNAL:
            return 128 + self.number
        return _EXIT_STATUS[self.outcome]


class RunEnded(Exception):  # noqa: N818 - it is no error
    """Raised out of a device's callback when the guest asks for the end of the run."""

    def __init__(self, result: RunResult) -> None:
        super().__init__(result.summary)
        self.result = result
