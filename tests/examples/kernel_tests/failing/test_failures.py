"""Three tests that fail, each in its own way: what a failure looks like.

pytest failing
"""

from collections.abc import Callable

import pytest

from pyvmm.testing.vm import Vm

pytestmark = pytest.mark.kernel(
    "debian:6.1-cloud", allow=[r"WARNING: .* at arch/x86/kernel/fpu/xstate\.c"]
)

KTAP = """\
KTAP version 1
1..2
ok 1 addition
# expected 4, got 5
not ok 2 multiplication
"""


def test_panic(vm: Vm) -> None:
    vm.run("echo c >/proc/sysrq-trigger")


@pytest.mark.kernel(hang_after_s=5)
def test_hang(vm: Vm) -> None:
    vm.expect("what never comes")


def test_ktap(vm: Vm, ktap: Callable[[str], None]) -> None:
    vm.put(KTAP, "/tmp/report")
    ktap(vm.run("cat /tmp/report").check().output)
