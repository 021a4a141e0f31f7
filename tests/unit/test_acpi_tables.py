"""The ACPI tables, as iasl reads them and ACPICA's interpreter runs them."""

from __future__ import annotations

import re
import struct

import pytest
from builders.iasl import HEADER_BYTES, compile_source, disassemble, execute, fields, needs_acpica

from pyvmm.arch.x86_64.acpi.tables import build
from pyvmm.errors import ConfigError

BASE_GPA = 0xE_0000
MAX_BYTES = 128 * 1024
COM1, COM2 = (0x3F8, 4), (0x2F8, 3)


def build_blob(cpu_count: int = 1, base_gpa: int = BASE_GPA) -> bytes:
    return build(
        base_gpa=base_gpa,
        max_bytes=MAX_BYTES,
        cpu_count=cpu_count,
        serial_ports=[COM1, COM2],
        virtio_mmio=[(0xD000_0000, 0x1000, 16), (0xD000_1000, 0x200, 23)],
    )


def tables_of(blob: bytes, base_gpa: int = BASE_GPA) -> dict[str, bytes]:
    """The tables that the RSDP at the start of ``blob`` leads to, by signature."""

    def table_at(gpa: int) -> bytes:
        offset = gpa - base_gpa
        (size,) = struct.unpack_from("<I", blob, offset + 4)
        table = blob[offset : offset + size]
        assert len(table) == size
        return table

    (xsdt_gpa,) = struct.unpack_from("<Q", blob, 24)
    xsdt = table_at(xsdt_gpa)
    entries = [table_at(gpa) for (gpa,) in struct.iter_unpack("<Q", xsdt[HEADER_BYTES:])]
    fadt = next(table for table in entries if table[:4] == b"FACP")
    (facs_gpa,) = struct.unpack_from("<I", fadt, 36)
    (dsdt_gpa,) = struct.unpack_from("<Q", fadt, 140)
    return {
        table[:4].decode(): table
        for table in (xsdt, *entries, table_at(facs_gpa), table_at(dsdt_gpa))
    }


def test_rsdp_is_as_the_specification_says() -> None:
    rsdp = build_blob()[:36]
    assert rsdp[:8] == b"RSD PTR "
    assert rsdp[15] == 2
    assert struct.unpack_from("<I", rsdp, 20) == (36,)
    assert sum(rsdp[:20]) & 0xFF == 0
    assert sum(rsdp) & 0xFF == 0


def test_tables_are_all_there_and_sum_to_zero() -> None:
    tables = tables_of(build_blob())
    assert sorted(tables) == ["APIC", "DSDT", "FACP", "FACS", "XSDT"]
    for signature in ("APIC", "DSDT", "FACP", "XSDT"):
        assert sum(tables[signature]) & 0xFF == 0, signature


@pytest.mark.parametrize("base_gpa", [0xE_0000, 0xF_FFF0, 0x10])
def test_tables_are_aligned_and_apart_wherever_they_are(base_gpa: int) -> None:
    blob = build_blob(base_gpa=base_gpa)
    tables = tables_of(blob, base_gpa)
    places = sorted((blob.index(table), len(table)) for table in tables.values())
    end = 36
    for offset, size in places:
        assert offset >= end
        assert (base_gpa + offset) % 16 == 0
        end = offset + size
    assert end == len(blob)
    assert (base_gpa + blob.index(tables["FACS"])) % 64 == 0  # ACPI 6.5, 5.2.10


@needs_acpica
@pytest.mark.parametrize("signature", ["XSDT", "FACP", "FACS", "APIC", "DSDT"])
@pytest.mark.parametrize("cpu_count", [1, 4, 300])
def test_table_comes_back_from_iasl_as_it_was(signature: str, cpu_count: int) -> None:
    table = tables_of(build_blob(cpu_count))[signature]
    again = compile_source(disassemble(table))
    if signature != "FACS":  # which has no header, into which iasl writes itself as the maker
        table, again = table[HEADER_BYTES:], again[HEADER_BYTES:]
    assert again == table


@needs_acpica
def test_fadt_has_a_pm1_block_and_no_more_fixed_hardware() -> None:
    fadt = fields(tables_of(build_blob())["FACP"])
    assert fadt["Revision"] == ["06"]
    assert fadt["Table Length"] == ["00000114"]  # ACPI 6.5, table 5.9: 276 bytes
    assert fadt["SCI Interrupt"] == ["0009"]
    assert fadt["SMI Command Port"] == ["00000000"]
    assert fadt["PM1A Event Block Address"] == ["00000600"]
    assert fadt["PM1 Event Block Length"] == ["04"]
    assert fadt["PM1A Control Block Address"] == ["00000604"]
    assert fadt["PM1 Control Block Length"] == ["02"]
    for absent in ("PM1B Event", "PM1B Control", "PM2 Control", "PM Timer", "GPE0", "GPE1"):
        assert fadt[f"{absent} Block Address"] == ["00000000"], absent
    # The generic addresses, in their order: reset, PM1a event, PM1b, PM1a control, and so on.
    assert fadt["Address"] == [
        f"{address:016X}" for address in (0x64, 0x600, 0, 0x604, 0, 0, 0, 0, 0, 0, 0)
    ]
    assert fadt["Bit Width"] == ["08", "20", "00", "10", *["00"] * 7]
    assert fadt["Space ID"][:4] == ["01 [SystemIO]", "01 [SystemIO]", "00 [SystemMemory]",
                                    "01 [SystemIO]"]  # fmt: skip


@needs_acpica
def test_fadt_tells_of_the_dsdt_twice_and_of_the_facs_once() -> None:
    blob = build_blob()
    tables = tables_of(blob)
    fadt = fields(tables["FACP"])
    dsdt_gpa = BASE_GPA + blob.index(tables["DSDT"])
    facs_gpa = BASE_GPA + blob.index(tables["FACS"])
    assert fadt["DSDT Address"] == [f"{dsdt_gpa:08X}", f"{dsdt_gpa:016X}"]
    assert fadt["FACS Address"] == [f"{facs_gpa:08X}", f"{0:016X}"]


@needs_acpica
def test_fadt_flags_are_those_of_this_machine() -> None:
    fadt = fields(tables_of(build_blob())["FACP"])
    set_flags = {name for name, values in fadt.items() if values == ["1"]}
    assert set_flags == {
        "Legacy Devices Supported (V2)",
        "VGA Not Present (V4)",
        "WBINVD instruction is operational (V1)",
        "All CPUs support C1 (V1)",
        "Control Method Sleep Button (V1)",
        "RTC wake not in fixed reg space (V1)",
        "Reset Register Supported (V2)",
    }
    assert fadt["Value to cause reset"] == ["FE"]
    assert fadt["RTC Century Index"] == ["32"]
    assert int(fadt["C2 Latency"][0], 16) > 100
    assert int(fadt["C3 Latency"][0], 16) > 1000


@needs_acpica
def test_madt_tells_of_each_processor_the_ioapic_and_the_sci() -> None:
    madt = fields(tables_of(build_blob(cpu_count=3))["APIC"])
    assert madt["Local Apic Address"] == ["FEE00000"]
    assert madt["PC-AT Compatibility"] == ["1"]
    assert madt["Subtable Type"] == [
        *["00 [Processor Local APIC]"] * 3,
        "01 [I/O APIC]",
        "02 [Interrupt Source Override]",
        "04 [Local APIC NMI]",
    ]
    assert madt["Local Apic ID"] == ["00", "01", "02"]
    assert madt["Processor ID"] == ["00", "01", "02", "FF"]  # the last for the NMI: all of them
    assert madt["Processor Enabled"] == ["1", "1", "1"]
    assert madt["Address"] == ["FEC00000"]
    assert madt["Source"] == ["09"]
    assert madt["Interrupt"] == ["00000000", "00000009"]  # the IOAPIC's first; the SCI's
    assert madt["Polarity"] == ["1", "0"]  # high; as the bus has it
    assert madt["Trigger Mode"] == ["3", "0"]  # level; as the bus has it
    assert madt["Interrupt Input LINT"] == ["01"]


@needs_acpica
def test_madt_tells_of_processors_from_255_on_as_x2apics() -> None:
    madt = fields(tables_of(build_blob(cpu_count=257))["APIC"])
    kinds = madt["Subtable Type"]
    assert kinds.count("00 [Processor Local APIC]") == 255
    assert kinds.count("09 [Processor Local x2APIC]") == 2
    assert kinds[-2:] == ["04 [Local APIC NMI]", "0A [Local x2APIC NMI]"]
    assert madt["Processor x2Apic ID"] == ["000000FF", "00000100"]
    assert madt["Processor UID"] == ["000000FF", "00000100", "FFFFFFFF"]
    assert madt["Interrupt Input LINT"] == ["01", "01"]


@needs_acpica
def test_madt_of_255_processors_has_no_x2apic() -> None:
    kinds = fields(tables_of(build_blob(cpu_count=255))["APIC"])["Subtable Type"]
    assert kinds.count("00 [Processor Local APIC]") == 255
    assert not [kind for kind in kinds if "x2APIC" in kind]


RESOURCES = {
    "COM1": {
        "Address Minimum": "03F8",
        "Address Maximum": "03F8",
        "Address Length": "08",
        "Interrupt List": "4",
        "Triggering": "Edge",
        "Polarity": "ActiveHigh",
    },
    "COM2": {"Address Minimum": "02F8", "Interrupt List": "3"},
    "RTC": {"Address Minimum": "0070", "Address Length": "02", "Interrupt List": "8"},
    "PEVT": {"Address Minimum": "0505", "Address Length": "01"},
    "VR00": {
        "Write Protect": "ReadWrite",
        "Address": "D0000000",
        "Address Length": "00001000",
        "Triggering": "Edge",
        "Polarity": "ActiveHigh",
        "Dword00": "00000010",  # GSI 16
    },
    "VR01": {"Address": "D0001000", "Address Length": "00000200", "Dword00": "00000017"},
}
VALUES = {
    "C000._HID": '[String] Length 08 = "ACPI0007"',
    "C003._UID": "[Integer] = 0000000000000003",
    "COM1._HID": "[Integer] = 000000000105D041",  # PNP0501
    "COM1._UID": "[Integer] = 0000000000000001",
    "COM2._UID": "[Integer] = 0000000000000002",
    "RTC._HID": "[Integer] = 00000000000BD041",  # PNP0B00
    "PEVT._HID": '[String] Length 08 = "QEMU0001"',
    "PEVT._STA": "[Integer] = 000000000000000F",
    "VR00._HID": '[String] Length 08 = "LNRO0005"',
    "VR01._UID": "[Integer] = 0000000000000001",
}


@pytest.fixture(scope="module")
def acpica_says() -> dict[str, str]:
    """What ACPICA makes of the DSDT: for each command, what it prints."""
    commands = [
        "evaluate \\_S5",
        *(f"evaluate \\_SB.{path}" for path in VALUES),
        *(f"resources \\_SB.{device}" for device in RESOURCES),
        "evaluate \\_SB.PEVT.WRPT 2",
        "evaluate \\_SB.PEVT.RDPT",
    ]
    output = execute(tables_of(build_blob(cpu_count=4))["DSDT"], commands)
    # Each answer begins with a line of its own: "Evaluating \_S5", "Device: \_SB.COM1".
    answers = re.split(r"^(?:Evaluating|Device:) (?=\\)", output, flags=re.MULTILINE)[1:]
    return dict(zip(commands, answers, strict=True))


@needs_acpica
def test_dsdt_s5_is_sleep_type_zero(acpica_says: dict[str, str]) -> None:
    answer = acpica_says["evaluate \\_S5"]
    assert "[Package] Contains 4 Elements" in answer
    assert answer.count("[Integer] = 0000000000000000") == 4


@needs_acpica
@pytest.mark.parametrize("path", VALUES)
def test_dsdt_object_has_its_value(path: str, acpica_says: dict[str, str]) -> None:
    assert VALUES[path] in acpica_says[f"evaluate \\_SB.{path}"]


@needs_acpica
@pytest.mark.parametrize("device", RESOURCES)
def test_dsdt_device_has_its_resources(device: str, acpica_says: dict[str, str]) -> None:
    answer = acpica_says[f"resources \\_SB.{device}"]
    found = dict(re.findall(r"^ +(\S.*?) : (.*?) *$", answer, re.MULTILINE))
    assert {name: found.get(name) for name in RESOURCES[device]} == RESOURCES[device]


@needs_acpica
def test_dsdt_pvpanic_methods_reach_the_port(acpica_says: dict[str, str]) -> None:
    # acpiexec stands in for the port with a byte of its own, which keeps what was written.
    assert "[Integer] = 0000000000000002" in acpica_says["evaluate \\_SB.PEVT.RDPT"]


def test_build_refuses_more_than_there_is_room_for() -> None:
    with pytest.raises(ConfigError, match=r"for 4000 CPUs take \d+ bytes; expected at most 131072"):
        build_blob(cpu_count=4000)


def test_build_refuses_an_address_where_no_kernel_looks() -> None:
    with pytest.raises(ValueError, match="multiple of 16"):
        build_blob(base_gpa=0xE_0008)
