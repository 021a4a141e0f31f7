"""The pytest plugin: ``vm`` and ``vm_factory``, the ``kernel`` marker, and reports of failures.

    @pytest.mark.kernel("debian:6.1-cloud", "debian:6.12-cloud", cpus=[1, 2])
    def test_has_its_cpus(vm):
        assert vm.run("nproc").output == str(vm.spec.cpus)

Loaded into every pytest run of an environment with pyvmm in it, so that it imports nothing before
it is needed.
"""

from __future__ import annotations

import itertools
import os
import sys
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm.testing.vm import Vm, VmSpec

DEFAULT_KERNEL = "debian"
_IN_THE_LAB = "PYVMM_LAB"  # set to 1 there (pyvmm/lab/machine.py)
_LAB_TIMEOUT_S = 3600.0
_AXES = ("cmdline", "cpus", "mem", "protocol", "initrd")
_OTHER_ARGUMENTS = ("timeout_s", "hang_after_s", "allow", "script", "files")


class VmFactory(Protocol):
    """``vm_factory``: boots a guest; what is not given is as the marker and the options say."""

    def __call__(self, **settings: Any) -> Vm:
        """Settings: kernel, cmdline, cpus, mem, protocol, initrd, script, files, timeout_s ..."""
        ...


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("pyvmm", "guests (pyvmm)")
    group.addoption(
        "--kernel",
        action="append",
        metavar="FILE|NAME",
        help="boot this kernel instead of those of the tests' markers; again for more of them",
    )
    group.addoption(
        "--pyvmm-ground",
        choices=("auto", "kvm", "lab"),
        default="auto",
        help="kvm: boot on this machine's /dev/kvm, whatever it is; auto (the default): skip where "
        "it has no hardware under it; lab: run all of pytest in a machine with a hardware-style "
        "/dev/kvm, which QEMU emulates",
    )
    group.addoption(
        "--pyvmm-lab-write",
        metavar="DIR",
        help="with --pyvmm-ground=lab: a directory that the tests, and --junitxml, can write to",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Describe the marker."""
    config.addinivalue_line(
        "markers",
        "kernel(*kernels, cmdline=, cpus=, mem=, protocol=, initrd=, script=, files=, timeout_s=, "
        "hang_after_s=, allow=): the guest of vm and vm_factory. A list of values for one of the "
        "first five is an axis of a matrix.",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> int | None:
    """With --pyvmm-ground=lab this pytest does nothing but to start another one, in the lab."""
    if config.getoption("--pyvmm-ground") != "lab" or os.environ.get(_IN_THE_LAB) == "1":
        return None
    from pyvmm.errors import PyvmmError
    from pyvmm.fetch import fetch_busybox, resolve_kernel
    from pyvmm.lab.image import prepare_image
    from pyvmm.lab.machine import Job, run_in_lab

    write_dir = config.getoption("--pyvmm-lab-write")
    command = [sys.executable, "-P", "-m", "pytest", *config.invocation_params.args]
    try:
        # There is no network in the lab. Kernels of markers have to be in the cache.
        for kernel in config.getoption("--kernel") or []:
            resolve_kernel(kernel)
        fetch_busybox()
        image = prepare_image(None)
        return run_in_lab(image, Job(command, _LAB_TIMEOUT_S, "2G", write_dir))
    except PyvmmError as error:
        raise pytest.UsageError(f"the lab: {error}") from error


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make the matrix of a test's markers."""
    if "vm_settings" not in metafunc.fixturenames:
        return
    settings = _marker_settings(metafunc.definition)
    kernels = metafunc.config.getoption("--kernel") or settings.pop("kernels") or [DEFAULT_KERNEL]
    settings.pop("kernels", None)
    axes = {"kernel": list(kernels)}
    for name in _AXES:
        if isinstance(settings.get(name), list | tuple):
            axes[name] = list(settings.pop(name))
    metafunc.parametrize(
        "vm_settings",
        [
            pytest.param({**settings, **dict(zip(axes, values, strict=True))}, id=_id(axes, values))
            for values in itertools.product(*axes.values())
        ],
        indirect=True,
    )


def _marker_settings(item: pytest.Item) -> dict[str, Any]:
    """What the markers say; the nearest one wins, kernels of the nearest that names some."""
    settings: dict[str, Any] = {"kernels": []}
    for marker in reversed(list(item.iter_markers("kernel"))):
        unknown = set(marker.kwargs) - {*_AXES, *_OTHER_ARGUMENTS}
        if unknown:
            raise pytest.UsageError(
                f"{item.nodeid}: the marker kernel has no {', '.join(sorted(unknown))}; expected "
                f"{', '.join((*_AXES, *_OTHER_ARGUMENTS))}"
            )
        settings.update(marker.kwargs)
        if marker.args:
            settings["kernels"] = list(marker.args)
    return settings


def _id(axes: dict[str, list[Any]], values: tuple[Any, ...]) -> str:
    """``debian:6.1-cloud-2cpus``: what varies, so that it can be read."""
    parts = []
    for name, value in zip(axes, values, strict=True):
        if name == "kernel":
            parts.append(str(value).rpartition("/")[2])
        elif name == "cpus":
            parts.append(f"{value}cpu" + ("s" if value > 1 else ""))
        elif name == "cmdline":
            parts.append(str(value).split()[-1] if str(value).split() else "no cmdline")
        else:
            parts.append(str(value).rpartition("/")[2])
    return "-".join(parts)


@pytest.fixture
def vm_settings(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What this test's guest is to be."""
    return dict(request.param)


@pytest.fixture(scope="session")
def _ground(request: pytest.FixtureRequest) -> None:
    """Skips, with the reason, where guests cannot run."""
    from kvm_bindings import Kvm
    from pyvmm.capabilities import check_required
    from pyvmm.errors import PyvmmError
    from pyvmm.probe import Virtualization, probe_virtualization

    try:
        with Kvm() as kvm:
            check_required(kvm)
            virtualization = probe_virtualization(kvm)
    except (PyvmmError, OSError) as error:
        pytest.skip(f"no guest can run here: {error}")
    if virtualization is Virtualization.SOFTWARE and (
        request.config.getoption("--pyvmm-ground") == "auto"
    ):
        pytest.skip(
            "this /dev/kvm emulates kernel mode (`pyvmm doctor` tells more), where a stock kernel "
            "takes minutes; --pyvmm-ground=kvm boots it all the same"
        )


@pytest.fixture(scope="session")
def _vm_initramfs(tmp_path_factory: pytest.TempPathFactory) -> str:
    from pyvmm.testing.initramfs import make_initramfs

    return make_initramfs(str(tmp_path_factory.mktemp("pyvmm") / "initramfs"))


@pytest.fixture
def vm_factory(
    request: pytest.FixtureRequest, vm_settings: dict[str, Any], _ground: None
) -> Iterator[VmFactory]:
    """A function that boots a guest; all that it has booted are ended after the test."""
    from pyvmm.testing.vm import Vm

    vms: list[Vm] = []
    request.node.stash[_VMS] = vms

    def make(**more: Any) -> Vm:
        settings = {**vm_settings, **more}
        limits = {
            name: settings[name] for name in ("timeout_s", "hang_after_s") if name in settings
        }
        vm = Vm(_spec(request, settings), **limits)
        vm.allow(*settings.get("allow", ()))
        vm.__enter__()
        vms.append(vm)
        return vm

    try:
        yield make
    finally:
        for vm in vms:
            vm.close()


@pytest.fixture
def vm(vm_factory: VmFactory, vm_settings: dict[str, Any]) -> Vm:
    """A guest whose init is ready."""
    vm = vm_factory()
    if not vm_settings.get("script"):
        vm.wait_ready()
    return vm


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Any:
    """A test has not passed if the kernel of a guest of its complained meanwhile."""
    result = yield
    for vm in item.stash.get(_VMS, []):
        vm.check()
    return result


@pytest.fixture
def ktap(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """A function that makes a result of this test's of each KTAP result in a text."""
    from pyvmm.testing.ktap import parse_ktap

    subtests = request.getfixturevalue("subtests")

    def report(text: str) -> None:
        results = parse_ktap(text)
        if not results:
            pytest.fail("there is no KTAP in the text (no line `KTAP version 1`)", pytrace=False)
        for result in results:
            with subtests.test(result.name):
                if result.outcome == "skipped":
                    pytest.skip(result.reason or "the guest says so")
                if result.outcome == "failed":
                    lines = [f"not ok: {result.name}", result.reason, *result.diagnostics]
                    pytest.fail("\n".join(filter(None, lines)), pytrace=False)

    return report


def _spec(request: pytest.FixtureRequest, settings: dict[str, Any]) -> VmSpec:
    from pyvmm.testing.initramfs import make_initramfs
    from pyvmm.testing.vm import DEFAULT_CMDLINE, VmSpec
    from pyvmm.units import parse_size

    initrd = settings.get("initrd")
    if initrd is None and (settings.get("script") or settings.get("files")):
        directory = request.getfixturevalue("tmp_path_factory").mktemp("pyvmm")
        initrd = make_initramfs(
            str(directory / "initramfs"),
            script=settings.get("script"),
            extra_files=settings.get("files", ()),
        )
    elif initrd is None:
        initrd = request.getfixturevalue("_vm_initramfs")
    return VmSpec(
        kernel=str(settings["kernel"]),
        cmdline=settings.get("cmdline", DEFAULT_CMDLINE),
        initrd=str(initrd),
        cpus=settings.get("cpus", 1),
        memory_bytes=parse_size(str(settings.get("mem", "256M"))),
        protocol=settings.get("protocol", "auto"),
    )


# Reports.

_VMS: pytest.StashKey[list[Vm]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add to a failure what is known of the guests; to JUnit's file consoles and configurations."""
    report = yield
    vms = item.stash.get(_VMS, [])
    error = call.excinfo.value if call.excinfo else None
    if report.failed and (text := getattr(error, "report", "")):
        report.sections.append(("the guest", text))
    if call.when == "teardown":  # which is when JUnit's file gets both
        for number, vm in enumerate(vms, start=1):
            name = "guest" if len(vms) == 1 else f"guest {number}"
            report.user_properties.append((f"{name}: configuration", vm.spec.command()))
            report.sections.append((f"Captured stdout: {name}'s console", vm.console_text))
    return report


@pytest.hookimpl(tryfirst=True)  # before the debugger comes
def pytest_exception_interact(
    node: pytest.Item | pytest.Collector, call: pytest.CallInfo[Any]
) -> None:
    """Have the guests stand still, so that --pdb finds them as they were."""
    if node.config.getoption("usepdb", False) and isinstance(node, pytest.Item):
        for vm in node.stash.get(_VMS, []):
            if vm.machine.wait(0) is None:
                vm.pause()
