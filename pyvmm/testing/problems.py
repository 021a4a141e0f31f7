"""What a kernel says on its console when something is wrong, told apart.

Each report begins with a line of its own kind. The patterns are those of Linux 6.1 to 6.12: the
sources beside them. A line counts only from its beginning, behind what printk puts in front of it:
what a program prints about kernels is no report.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pyvmm.testing import outcomes

# printk's own: the level with console_loglevel shown, the time, the processor or task.
_PREFIX = r"^(?:<\d+>)?(?:\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? )?"

# The first that matches counts: several begin with "BUG:".
_KINDS: tuple[tuple[str, type[outcomes.KernelProblem]], ...] = (
    (r"Kernel panic - not syncing: ", outcomes.KernelPanic),  # kernel/panic.c
    (r"BUG: (?:KASAN|KFENCE|KMSAN|KCSAN): ", outcomes.KasanReport),  # mm/kasan/report.c
    (r"UBSAN: ", outcomes.UbsanReport),  # lib/ubsan.c
    (r"(?:watchdog: )?BUG: soft lockup - ", outcomes.SoftLockup),  # kernel/watchdog.c
    (r"rcu: INFO: \S+ (?:self-)?detected (?:expedited )?stall", outcomes.RcuStall),  # tree_stall.h
    (r"INFO: task .* blocked for more than \d+ seconds", outcomes.HungTask),  # kernel/hung_task.c
    (
        r"(?:WARNING: (?:possible (?:circular|recursive|irq lock inversion)|bad unlock balance|"
        r"inconsistent lock state|suspicious RCU usage|HARDIRQ|SOFTIRQ|nested lock)|"
        r"BUG: sleeping function called from invalid context|BUG: Invalid wait context)",
        outcomes.LockdepReport,  # kernel/locking/lockdep.c, kernel/sched/core.c
    ),
    (r"kernel BUG at ", outcomes.KernelBug),  # lib/bug.c
    (r"WARNING: CPU: \d+ PID: \d+ at ", outcomes.KernelWarning),  # kernel/panic.c
    (
        r"(?:BUG: unable to handle|BUG: kernel NULL pointer|general protection fault|Oops: |"
        r"invalid opcode: |stack segment: |double fault: |divide error: )",
        outcomes.KernelOops,  # arch/x86/mm/fault.c, kernel/traps.c
    ),
)
_ANY = re.compile(
    _PREFIX + "(?:" + "|".join(f"({pattern}.*)" for pattern, _ in _KINDS) + ")", re.MULTILINE
)


class Problem(NamedTuple):
    """A report on the console: where it begins, and what its first line says."""

    kind: type[outcomes.KernelProblem]
    line: str
    position: int


def find_problems(console: str) -> list[Problem]:
    """All reports in ``console``, in order, without ANSI sequences and carriage returns.

    An oops is followed by lines that begin reports themselves ("Oops: 0000"): within 50 lines of
    it they belong to it. So does the panic that it may end in.
    """
    found: list[Problem] = []
    last_end = 0
    for match in _ANY.finditer(console):
        index = next(number for number, text in enumerate(match.groups()) if text is not None)
        kind = _KINDS[index][1]
        lines = console.count("\n", last_end, match.start())
        belongs = (
            found
            and found[-1].kind in (outcomes.KernelOops, outcomes.KernelBug, outcomes.KasanReport)
            and kind is outcomes.KernelOops
            and lines < 50
        )
        if not belongs:
            found.append(Problem(kind, match.group(index + 1), match.start()))
        last_end = match.end()
    return found
