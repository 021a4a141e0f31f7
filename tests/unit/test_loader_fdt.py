"""Flattened devicetrees: each fault of one, where it may lie, and what dtc says of ours."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from builders.flat_tree import flat_tree
from builders.ram import ram_at

from pyvmm.arch import devicetree
from pyvmm.arch.devicetree import ARM64_RAM_GPA, VirtMachine
from pyvmm.errors import CmdlineError, DeviceTreeError, HostError
from pyvmm.loader import fdt
from pyvmm.loader.load import Placement
from pyvmm.memory import GuestMemory
from pyvmm.units import GiB, MiB


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with ram_at(ARM64_RAM_GPA, 4 * MiB) as memory:
        yield memory


def refusal(data: bytes) -> str:
    """The rule that ``data`` breaks."""
    with pytest.raises(DeviceTreeError) as caught:
        fdt.parse(memoryview(data))
    assert "\n" not in str(caught.value)
    return caught.value.rule


def dtc(*arguments: str, source: bytes) -> str:
    """What dtc makes of ``source``. It must not warn of anything."""
    if shutil.which("dtc") is None:
        pytest.skip("dtc (package device-tree-compiler) is not installed")
    result = subprocess.run(["dtc", *arguments], input=source, capture_output=True)
    assert (result.returncode, result.stderr) == (0, b"")
    return result.stdout.decode("latin-1")


def test_header_is_read() -> None:
    header = fdt.parse(memoryview(flat_tree(boot_cpuid_phys=7)))
    assert (header.totalsize, header.off_dt_struct, header.size_dt_struct) == (72, 56, 16)
    assert (header.version, header.boot_cpuid_phys) == (17, 7)


def test_header_of_what_dtc_writes_is_read() -> None:
    blob = dtc("-O", "dtb", source=b'/dts-v1/; / { model = "x"; };').encode("latin-1")
    header = fdt.parse(memoryview(blob))
    assert header.totalsize == len(blob)
    assert blob[header.off_dt_strings :][: header.size_dt_strings] == b"model\x00"


def test_devicetree_may_have_something_behind_it() -> None:
    assert fdt.parse(memoryview(flat_tree() + b"more")).totalsize == 72


FAULTS = {
    "fdt-header-size": [b"", flat_tree()[:39]],
    "fdt-magic": [flat_tree(magic=0xEDFE0DD0), b"/dts-v1/; / { };" * 9],
    "fdt-totalsize": [flat_tree(totalsize=73), flat_tree(totalsize=39), flat_tree(totalsize=0)],
    "fdt-size-limit": [
        flat_tree(totalsize=2 * MiB + 1) + bytes(2 * MiB),
        flat_tree(totalsize=0xFFFF_FFFF),
    ],
    "fdt-version": [flat_tree(version=16), flat_tree(version=19, last_comp_version=18)],
    "fdt-block": [
        flat_tree(off_dt_struct=57),
        flat_tree(off_dt_struct=60),
        flat_tree(off_dt_struct=36),
        flat_tree(size_dt_struct=0xFFFF_FFFF),
        flat_tree(off_dt_strings=73),
        flat_tree(size_dt_strings=1),
        flat_tree(off_mem_rsvmap=44),
        flat_tree(off_mem_rsvmap=64),
    ],
}


@pytest.mark.parametrize(
    ("rule", "data"), [(rule, data) for rule, several in FAULTS.items() for data in several]
)
def test_fault_is_told_by_its_rule(rule: str, data: bytes) -> None:
    assert refusal(data) == rule


def test_devicetree_of_exactly_2_mib_is_allowed() -> None:
    blob = flat_tree(totalsize=2 * MiB).ljust(2 * MiB, b"\x00")
    assert fdt.parse(memoryview(blob)).totalsize == 2 * MiB


def test_newer_version_that_can_be_read_as_17_is_allowed() -> None:
    assert fdt.parse(memoryview(flat_tree(version=18, last_comp_version=17))).version == 18


# Placing


def test_devicetree_is_placed_without_what_is_behind_it(memory: GuestMemory) -> None:
    gpa = ARM64_RAM_GPA + 8
    placement = fdt.place_fdt(flat_tree() + b"more", memory, gpa)
    assert placement == Placement("devicetree", gpa, 72)
    assert memory.read(gpa, 76) == flat_tree() + bytes(4)


def test_devicetree_may_end_where_memory_does(memory: GuestMemory) -> None:
    assert fdt.place_fdt(flat_tree(), memory, memory.end_gpa - 72).end_gpa == memory.end_gpa


@pytest.mark.parametrize(
    ("gpa", "rule"),
    [
        (ARM64_RAM_GPA + 4, "fdt-alignment"),
        (ARM64_RAM_GPA + 4 * MiB - 64, "fdt-ram"),
        (ARM64_RAM_GPA - 8, "fdt-ram"),
        (0, "fdt-ram"),
    ],
)
def test_place_that_is_none_is_refused(gpa: int, rule: str, memory: GuestMemory) -> None:
    with pytest.raises(DeviceTreeError) as caught:
        fdt.place_fdt(flat_tree(), memory, gpa)
    assert caught.value.rule == rule


def test_devicetree_that_is_damaged_is_not_placed(memory: GuestMemory) -> None:
    with pytest.raises(DeviceTreeError) as caught:
        fdt.place_fdt(flat_tree(magic=1), memory, ARM64_RAM_GPA)
    assert caught.value.rule == "fdt-magic"
    assert memory.read(ARM64_RAM_GPA, 72) == bytes(72)


# Writing one

MACHINE = VirtMachine(
    memory=[(ARM64_RAM_GPA, 256 * MiB), (4 * GiB, 5 * GiB)],
    cpus=18,
    bootargs='console=ttyAMA0 x="a b"',
    initrd=Placement("initrd", 0x1_4800_0000, 0x1234),
)
BUILDERS = {"arm64": devicetree.build_arm64, "riscv64": devicetree.build_riscv64}


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_dtc_reads_what_is_written_without_a_warning(build: Callable[[VirtMachine], bytes]) -> None:
    source = dtc("-I", "dtb", "-O", "dts", source=build(MACHINE))
    assert 'bootargs = "console=ttyAMA0 x=\\"a b\\"";' in source
    assert "memory@40000000 {" in source
    assert "reg = <0x00 0x40000000 0x00 0x10000000>;" in source
    assert "memory@100000000 {" in source
    assert "reg = <0x01 0x00 0x01 0x40000000>;" in source
    assert "linux,initrd-start = <0x01 0x48000000>;" in source
    assert "linux,initrd-end = <0x01 0x48001234>;" in source
    assert source.count('device_type = "cpu";') == 18


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_what_is_written_passes_the_check(build: Callable[[VirtMachine], bytes]) -> None:
    blob = build(MACHINE)
    assert fdt.parse(memoryview(blob)).totalsize == len(blob)


@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_what_was_not_given_is_not_written(build: Callable[[VirtMachine], bytes]) -> None:
    source = dtc("-I", "dtb", "-O", "dts", source=build(VirtMachine([(4 * GiB, GiB)])))
    assert "bootargs" not in source
    assert "initrd" not in source
    assert source.count('device_type = "cpu";') == 1


def test_processors_of_arm64_are_numbered_by_affinity() -> None:
    source = dtc("-I", "dtb", "-O", "dts", source=devicetree.build_arm64(MACHINE))
    # MPIDR_EL1 has Aff0 in bits 0 to 7 and Aff1 in 8 to 15; of Aff0, GICv3 takes 16.
    for name, reg in (("cpu@0", "0x00"), ("cpu@f", "0x0f"), ("cpu@100", "0x100")):
        node = source[source.index(f"{name} {{") :]
        assert f"reg = <{reg}>;" in node[: node.index("}")]


@pytest.mark.parametrize("text", ["caf\u00e9", "a\x00b", "a\nb", "\udce4"])
def test_command_line_that_a_devicetree_cannot_hold_is_refused(text: str) -> None:
    with pytest.raises(CmdlineError) as caught:
        devicetree.build_arm64(MACHINE._replace(bootargs=text))
    assert caught.value.rule == "fdt-bootargs"


def test_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fdt", None)
    with pytest.raises(HostError, match=r"pip install 'pyvmm\[fdt\]'"):
        devicetree.build_arm64(MACHINE)
