"""What is added to a command line where kernel mode is emulated, and what is left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from builders import bzimage as bz
from builders.elf import vmlinux
from builders.stock_kernels import debian_vmlinuz

from pyvmm.arch.x86_64 import layout
from pyvmm.config import MachineConfig, Tune
from pyvmm.loader.image import KernelImage
from pyvmm.loader.linux_version import linux_version
from pyvmm.loader.load import Decompress, load_kernel
from pyvmm.memory import GuestMemory
from pyvmm.prepare import prepare
from pyvmm.tuning import Tuned, tune_for_emulation
from pyvmm.units import MiB

LINUX_6_1 = (6, 1)
CAPACITY = 2048
BANNER = b"Linux version 6.12.3 (a@b) (gcc 12) #1 SMP Mon\n"


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory.create(16 * MiB) as memory:
        yield memory


def added(line: str, version: tuple[int, int] = LINUX_6_1, capacity: int = CAPACITY) -> set[str]:
    """The names of what is added to ``line``."""
    return {text.partition("=")[0] for text in tune_for_emulation(line, version, capacity).added}


# Which kernel it is


@pytest.mark.parametrize("decompress", list(Decompress))
def test_version_is_that_of_the_setup_header(decompress: Decompress, memory: GuestMemory) -> None:
    image = bytearray(bz.bzimage(bz.compress("gzip", vmlinux()), kernel_version=0x400))
    text = b"6.1.0-56-cloud-amd64 (who@where) #1 SMP\x00"
    image[0x600 : 0x600 + len(text)] = text
    kernel = load_kernel(KernelImage.from_bytes(bytes(image)), memory, decompress=decompress)
    assert linux_version(memoryview(image), kernel, memory) == (6, 1)


def test_version_of_a_vmlinux_is_that_of_its_banner(memory: GuestMemory) -> None:
    image = vmlinux(b"\xf4" * 0x100 + BANNER)
    kernel = load_kernel(KernelImage.from_bytes(image), memory)
    assert linux_version(memoryview(image), kernel, memory) == (6, 12)


def test_version_of_a_bzimage_without_one_is_that_of_the_banner(memory: GuestMemory) -> None:
    payload = bz.compress("gzip", vmlinux(b"\xf4" * 0x100 + BANNER))
    image = bz.bzimage(payload, kernel_version=0)
    kernel = load_kernel(KernelImage.from_bytes(image), memory)
    assert linux_version(memoryview(image), kernel, memory) == (6, 12)


def test_kernel_that_is_no_linux_has_no_version(memory: GuestMemory) -> None:
    image = vmlinux()
    kernel = load_kernel(KernelImage.from_bytes(image), memory)
    assert linux_version(memoryview(image), kernel, memory) is None


def test_version_that_lies_outside_the_image_is_none(memory: GuestMemory) -> None:
    image = bz.bzimage(bz.compress("gzip", vmlinux()), kernel_version=0xFFFF)
    kernel = load_kernel(KernelImage.from_bytes(image), memory)
    assert linux_version(memoryview(image), kernel, memory) is None


# What is added


def test_parameters_stand_behind_the_users() -> None:
    line = tune_for_emulation("console=ttyS0 quiet", LINUX_6_1, CAPACITY).cmdline
    assert line.startswith("console=ttyS0 quiet clearcpuid=erms,")


def test_parameters_stand_before_inits_arguments() -> None:
    tuned = tune_for_emulation("quiet -- exit 42", LINUX_6_1, CAPACITY)
    assert tuned.cmdline == " ".join(["quiet", *tuned.added, "--", "exit", "42"])


@pytest.mark.parametrize(
    ("given", "left_out"),
    [
        ("clearcpuid=smap", "clearcpuid"),
        ("init-on-alloc=1", "init_on_alloc"),
        ("rodata=on", "rodata"),
        ("mitigations=auto", "mitigations"),
        ("spectre_v2=on", "mitigations"),
        ("pti=on", "mitigations"),
        ("audit=1", "audit"),
        ("security=apparmor", "lsm"),
        ("clocksource=acpi_pm", "tsc"),
    ],
)
def test_parameter_that_the_user_has_decided_on_is_left_alone(given: str, left_out: str) -> None:
    assert added("quiet") - added(given) == {left_out}
    assert given in tune_for_emulation(given, LINUX_6_1, CAPACITY).cmdline.split()


@pytest.mark.parametrize(("version", "is_left_out"), [((6, 7), True), ((6, 8), False)])
def test_cubic_is_left_out_where_it_alone_has_all_types_parsed(
    version: tuple[int, int], is_left_out: bool
) -> None:
    line = tune_for_emulation("", version, CAPACITY).cmdline
    assert ("cubictcp_register" in line) is is_left_out


def test_users_own_initcall_blacklist_is_added_to() -> None:
    line = tune_for_emulation("initcall_blacklist=x", LINUX_6_1, CAPACITY).cmdline
    assert line.startswith("initcall_blacklist=x ")
    assert " initcall_blacklist=ptp_kvm_init," in line


def test_parameter_among_inits_arguments_decides_nothing() -> None:
    assert added("quiet -- rodata=on") == added("quiet")


def test_parameters_that_do_not_fit_are_left_out() -> None:
    everything = tune_for_emulation("quiet", LINUX_6_1, CAPACITY)
    exact = len(everything.cmdline) + 1
    assert tune_for_emulation("quiet", LINUX_6_1, exact) == everything
    shorter = tune_for_emulation("quiet", LINUX_6_1, exact - 1)
    assert len(shorter.cmdline) + 1 < exact
    assert shorter.added == everything.added[:-1]


@pytest.mark.parametrize("line", ['title="no end', "name=\udcff", "a -- b -- c", "x" * CAPACITY])
def test_line_that_the_rules_do_not_allow_stays_as_it_is(line: str) -> None:
    assert tune_for_emulation(line, LINUX_6_1, CAPACITY) == Tuned(line)


# SDM 2A CPUID: the leaf and its register, as the kernel numbers them (cpufeatures.h): word 4 is
# leaf 1 ECX, 9 is leaf 7 EBX, 10 is leaf 0xD.1 EAX, 18 is leaf 7 EDX.
FEATURE_BITS = {
    "erms": (9, 9), "fsrm": (18, 4), "smep": (9, 7), "smap": (9, 20), "xsavec": (10, 1),
    "xsaves": (10, 3), "ssse3": (4, 9), "sse4_1": (4, 19), "pclmulqdq": (4, 1), "aes": (4, 25),
}  # fmt: skip


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ((6, 12), [",".join(FEATURE_BITS)]),
        ((5, 19), [",".join(FEATURE_BITS)]),
        ((5, 18), [",".join(str(32 * word + bit) for word, bit in FEATURE_BITS.values())]),
        ((5, 10), [",".join(str(32 * word + bit) for word, bit in FEATURE_BITS.values())]),
        ((5, 9), []),
    ],
)
def test_features_are_named_as_the_kernels_version_reads_them(
    version: tuple[int, int], expected: list[str]
) -> None:
    tuned = tune_for_emulation("", version, CAPACITY)
    values = [
        text.partition("=")[2] for text in tuned.added if text.partition("=")[0] == "clearcpuid"
    ]
    assert values == expected


# When


@pytest.mark.parametrize(
    ("tune", "emulated", "is_tuned"),
    [
        (Tune.AUTO, True, True),
        (Tune.AUTO, False, False),
        (Tune.SOFTWARE, False, True),
        (Tune.NONE, True, False),
    ],
)
def test_tuning_follows_the_host_unless_told_otherwise(
    tune: Tune, emulated: bool, is_tuned: bool, memory: GuestMemory
) -> None:
    image = KernelImage.from_bytes(vmlinux(b"\xf4" * 0x100 + BANNER))
    config = MachineConfig(kernel="vmlinux", cmdline="quiet", tune=tune)
    prepared = prepare(config, image, memory, emulated=emulated)
    line = memory.read(layout.CMDLINE_GPA, CAPACITY).partition(b"\x00")[0].decode()
    added = prepared.tuned.added if prepared.tuned is not None else ()
    assert bool(added) is is_tuned
    assert line == " ".join(["quiet", *added])


@pytest.mark.parametrize(("cpu_count", "is_added"), [(1, True), (2, False)])
def test_ticks_are_the_pits_if_there_is_one_processor(
    cpu_count: int, is_added: bool, memory: GuestMemory
) -> None:
    image = KernelImage.from_bytes(vmlinux(b"\xf4" * 0x100 + BANNER))
    config = MachineConfig(kernel="vmlinux", tune=Tune.SOFTWARE, cpus=cpu_count)
    tuned = prepare(config, image, memory).tuned
    assert tuned is not None
    assert ("nolapic_timer" in tuned.added, tuned.ticks_by_pit) == (is_added, is_added)


@pytest.mark.parametrize(
    ("line", "ticks_by_pit"),
    [
        ("nolapic", True),
        ("lapic", False),
        ("notsc", False),
        ("clocksource=jiffies", False),
        ('a "quote without an end', False),
    ],
)
def test_ticks_are_not_the_pits_where_the_line_says_otherwise(
    line: str, ticks_by_pit: bool
) -> None:
    assert tune_for_emulation(line, LINUX_6_1, CAPACITY).ticks_by_pit is ticks_by_pit


def test_kernel_that_is_no_linux_is_told_nothing(memory: GuestMemory) -> None:
    config = MachineConfig(kernel="vmlinux", cmdline="x", tune=Tune.SOFTWARE)
    assert prepare(config, KernelImage.from_bytes(vmlinux()), memory).tuned is None


def test_what_a_kernel_takes_is_the_limit(memory: GuestMemory) -> None:
    payload = bz.compress("gzip", vmlinux(b"\xf4" * 0x100 + BANNER))
    image = KernelImage.from_bytes(bz.bzimage(payload, cmdline_size=60))
    config = MachineConfig(kernel="bzImage", cmdline="quiet", tune=Tune.SOFTWARE)
    prepared = prepare(config, image, memory)
    line = memory.read(layout.CMDLINE_GPA, CAPACITY).partition(b"\x00")[0]
    assert prepared.tuned is not None
    assert prepared.tuned.added
    assert len(line) <= 60


@pytest.mark.parametrize(("series", "version"), [("6.1", (6, 1)), ("6.12", (6, 12))])
def test_version_of_a_stock_kernel(series: str, version: tuple[int, int]) -> None:
    with (
        KernelImage.open(debian_vmlinuz(series)) as image,
        GuestMemory.create(256 * MiB) as memory,
    ):
        kernel = load_kernel(image, memory)
        assert linux_version(image.data, kernel, memory) == version
        without_header = kernel._replace(setup_header=None)
        assert linux_version(image.data, without_header, memory) == version
