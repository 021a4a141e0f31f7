"""Two kernels, and what can be asked of each."""

import pytest

from pyvmm.testing.vm import Vm

pytestmark = pytest.mark.kernel(
    "debian:6.1-cloud",
    "debian:6.12-cloud",
    # QEMU's emulated processor, which these tests may run on, has XSAVE leaves that do not fit.
    allow=[r"WARNING: .* at arch/x86/kernel/fpu/xstate\.c"],
)


def test_three_commands(vm: Vm) -> None:
    release = vm.run("uname -r").check().output
    assert vm.spec.kernel.removeprefix("debian:").removesuffix("-cloud") in release
    assert vm.run("cat", stdin="through the guest and back").output == "through the guest and back"
    assert vm.run("ls /no/such/directory").returncode != 0


def test_console_and_files(vm: Vm) -> None:
    vm.put("#!/bin/sh\necho one\necho two >&2\n", "/root/script", mode=0o755)
    vm.sendline("/root/script")
    vm.expect("one\ntwo\n")
    assert vm.get("/root/script").startswith(b"#!/bin/sh")
