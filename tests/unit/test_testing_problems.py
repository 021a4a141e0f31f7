"""What kernels print when something is wrong: lines as Linux 6.1 and 6.12 print them."""

from __future__ import annotations

import pytest

from pyvmm.testing import outcomes
from pyvmm.testing.problems import find_problems

OOPS = """\
[    3.1] BUG: kernel NULL pointer dereference, address: 0000000000000000
[    3.1] #PF: supervisor write access in kernel mode
[    3.1] PGD 0 P4D 0
[    3.1] Oops: 0002 [#1] PREEMPT SMP NOPTI
[    3.1] CPU: 0 PID: 1 Comm: sh Not tainted 6.1.0 #1
"""

REPORTS = {
    "[    1.0] Kernel panic - not syncing: VFS: Unable to mount root fs": outcomes.KernelPanic,
    "[    1.0] BUG: KASAN: slab-out-of-bounds in foo+0x12/0x34": outcomes.KasanReport,
    "[    1.0] BUG: KFENCE: use-after-free read in foo+0x1/0x2": outcomes.KasanReport,
    "[    1.0] UBSAN: array-index-out-of-bounds in lib/foo.c:3:4": outcomes.UbsanReport,
    "[    1.0] watchdog: BUG: soft lockup - CPU#0 stuck for 26s!": outcomes.SoftLockup,
    "[    1.0] rcu: INFO: rcu_preempt self-detected stall on CPU": outcomes.RcuStall,
    "[    1.0] rcu: INFO: rcu_sched detected stalls on CPUs/tasks:": outcomes.RcuStall,
    "[    1.0] INFO: task init:1 blocked for more than 120 seconds.": outcomes.HungTask,
    "[    1.0] WARNING: possible circular locking dependency detected": outcomes.LockdepReport,
    "[    1.0] BUG: sleeping function called from invalid context at mm/x.c:1":
        outcomes.LockdepReport,
    "[    1.0] kernel BUG at mm/slub.c:379!": outcomes.KernelBug,
    "[    1.0] WARNING: CPU: 1 PID: 7 at kernel/foo.c:12 bar+0x3/0x4": outcomes.KernelWarning,
    "[    1.0] general protection fault, probably for non-canonical address 0x1: 0000 [#1] SMP":
        outcomes.KernelOops,
    "[    1.0] BUG: unable to handle page fault for address: ffffffff": outcomes.KernelOops,
    "<4>[    1.0][    T1] invalid opcode: 0000 [#1] PREEMPT SMP": outcomes.KernelOops,
}  # fmt: skip


@pytest.mark.parametrize("line", REPORTS)
def test_each_report_has_its_kind(line: str) -> None:
    (problem,) = find_problems(f"before\n{line}\nafter\n")
    assert problem.kind is REPORTS[line]
    assert line.endswith(problem.line)


def test_lines_of_one_oops_are_one_problem() -> None:
    assert [problem.kind for problem in find_problems(OOPS)] == [outcomes.KernelOops]


def test_panic_after_an_oops_is_a_problem_of_its_own() -> None:
    text = OOPS + "[    3.2] Kernel panic - not syncing: Fatal exception\n"
    assert [problem.kind for problem in find_problems(text)] == [
        outcomes.KernelOops,
        outcomes.KernelPanic,
    ]


def test_two_oopses_are_two() -> None:
    assert len(find_problems(OOPS + "\n" * 60 + OOPS)) == 2


@pytest.mark.parametrize(
    "line",
    [
        "# dmesg | grep 'Kernel panic - not syncing: '",
        "echo WARNING: CPU: 0 PID: 0 at nowhere",
        "[    1.0] printk: Kernel panic will reset in 1 s",
        "[    0.0] x86/cpu: WARNING: no BUG: here",
    ],
)
def test_what_only_speaks_of_problems_is_none(line: str) -> None:
    assert find_problems(f"{line}\n") == []
