"""``pyvmm doctor``: can this machine run guests, how, and what to do where it cannot.

Nothing is concluded from /proc/cpuinfo: whether /dev/kvm works, and whether hardware or software
runs the guest's kernel mode, is found by trying.
"""

from __future__ import annotations

import os
import platform
import shutil
from typing import TYPE_CHECKING, NamedTuple

from pyvmm.units import MiB, format_size

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace
    from collections.abc import Iterator

    from kvm_bindings import Kvm

HELP = "tell whether and how this machine can run guests"


class Check(NamedTuple):
    """One line of the report. ``good`` is None for what is worth knowing but no problem."""

    good: bool | None
    text: str
    remedy: str = ""


def configure(parser: ArgumentParser) -> None:
    """This command has no options of its own."""


def run(args: Namespace) -> int:
    """Print the report; 0 if guests can run here, 1 if not."""
    problems = 0
    for check in _checks():
        mark = {True: "ok", False: "NO", None: "--"}[check.good]
        print(f"{mark:>4}  {check.text}")
        if check.remedy:
            print(f"      -> {check.remedy}")
        problems += check.good is False
    print()
    if problems:
        print(f"This machine cannot run guests: {problems} of the checks above say NO.")
        return 1
    print("This machine can run guests: try `pyvmm run`.")
    return 0


def _checks() -> Iterator[Check]:
    machine, system = platform.machine(), platform.system()
    fits = (machine, system) == ("x86_64", "Linux")
    yield Check(
        fits,
        f"{system} {platform.release()} on {machine}, Python {platform.python_version()}",
        "" if fits else "pyvmm runs on Linux on x86_64",
    )
    if not fits:
        return
    device = _check_device()
    yield device
    if not device.good:
        return
    yield from _check_kvm()
    yield from _check_fetching()


def _check_device() -> Check:
    path = "/dev/kvm"
    if not os.path.exists(path):
        return Check(
            False,
            f"{path} is not there",
            "load KVM (`modprobe kvm_intel` or `kvm_amd`), enable virtualization in the firmware; "
            "in a VM have nested virtualization enabled; in a container pass --device /dev/kvm",
        )
    if not os.access(path, os.R_OK | os.W_OK):
        problem = f"{path} may not be opened by user id {os.getuid()}"
        return Check(False, problem, _access_remedy(path))
    return Check(True, f"{path} is there and may be opened")


def _access_remedy(path: str) -> str:
    """How to be let in. By the group that owns it, unless that is none to join, or of no use."""
    import grp
    import stat

    status = os.stat(path)
    try:
        group = grp.getgrgid(status.st_gid).gr_name
    except KeyError:
        group = "root"
    readable_and_writable = stat.S_IRGRP | stat.S_IWGRP
    if group == "root" or status.st_mode & readable_and_writable != readable_and_writable:
        return (
            f"it is {stat.filemode(status.st_mode)} of group {group}: give it to a group of its "
            f"own (`sudo chgrp kvm {path} && sudo chmod 660 {path}`), then join that group "
            "(`sudo usermod -aG kvm $USER`) and log in anew"
        )
    return f"join its group: `sudo usermod -aG {group} $USER`, then log in anew"


def _check_kvm() -> Iterator[Check]:
    from kvm_bindings import Cap, Kvm, KvmError
    from pyvmm.capabilities import WANTED

    try:
        with Kvm() as kvm:
            yield Check(True, f"KVM API version {kvm.api_version()}")
            missing = False
            for wanted in WANTED:
                value = wanted.ask(kvm)
                text = f"KVM_CAP_{wanted.name}: {value or 'absent'} ({wanted.purpose})"
                if value or not wanted.required:
                    yield Check(bool(value) or None, text)
                else:
                    missing = True
                    yield Check(False, text, "a newer Linux kernel has it")
            vcpus = kvm.check_extension(Cap.MAX_VCPUS)
            yield Check(None, f"at most {vcpus} vCPUs in a VM")
            if not missing:
                yield from _check_virtualization(kvm)
    except KvmError as error:
        yield Check(False, str(error))


def _check_virtualization(kvm: Kvm) -> Iterator[Check]:
    from pyvmm.probe import Virtualization, probe_virtualization, syscall_enters_the_kernel

    if probe_virtualization(kvm) is Virtualization.HARDWARE:
        text = "hardware virtualization: a test guest ran natively in kernel mode"
        yield Check(True, text)
        return
    yield Check(
        None,
        "software virtualization: KVM emulates the guest's kernel mode, instruction by instruction",
        "slow; what KVM cannot emulate pyvmm executes itself. "
        "For full speed use a machine that gives VT-x or SVM",
    )
    if not syscall_enters_the_kernel(kvm):
        yield Check(
            None,
            "SYSCALL does not enter the guest's kernel on this KVM; pyvmm has it enter",
            "by a breakpoint: a guest's own debug registers have no effect",
        )


def _check_fetching() -> Iterator[Check]:
    memory_bytes = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    yield Check(None, f"{format_size(memory_bytes // MiB * MiB)} of memory are free")
    if shutil.which("apt-get") and shutil.which("dpkg-deb"):
        yield Check(True, "apt is there: kernels can be fetched by name (`pyvmm fetch --list`)")
    else:
        yield Check(
            None,
            "apt is not there: kernels cannot be fetched by name",
            "give `pyvmm run --kernel` a file",
        )
