"""The three forms of a report, of images that are whole and that are not."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import pytest
from builders import bzimage as bz
from builders import multiboot as mb
from builders.elf import Elf, Segment, vmlinux
from builders.flat_image import arm64_image
from builders.pe import uki

from pyvmm.boot import Protocol
from pyvmm.config import MachineConfig
from pyvmm.explain import as_html, as_json, text
from pyvmm.explain.model import Report, SpanKind
from pyvmm.explain.report import explain
from pyvmm.loader.image import KernelImage
from pyvmm.units import MiB

CONFIG = MachineConfig(kernel="kernel", cmdline="console=ttyS0", memory_bytes=16 * MiB)


def report_of(data: bytes, protocol: Protocol = Protocol.AUTO, name: str = "image") -> Report:
    return explain(KernelImage.from_bytes(data, name), CONFIG._replace(protocol=protocol))


BZIMAGE = bz.bzimage(bz.compress("gzip", vmlinux()))
REPORTS = {
    "elf": report_of(vmlinux()),
    "bzimage": report_of(BZIMAGE),
    "linux64": report_of(BZIMAGE, Protocol.LINUX64),
    "linux32": report_of(BZIMAGE, Protocol.LINUX32),
    "multiboot": report_of(mb.image(b"\xf4" * 64)),
    "cut off": report_of(BZIMAGE[:2600]),
    "elsewhere": report_of(Elf(segments=[Segment(1 << 62, b"x", memsz=1 << 61)]).build()),
    "uki": report_of(uki(BZIMAGE, cmdline=b"a <b> & c\n", osrel=b"\xff\x00")),
    "arm64": report_of(arm64_image()),
    "text": report_of(b"<html>", name="a<b>&\u00e9"),
}
each_report = pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)


# Text


@each_report
@pytest.mark.parametrize("width", [40, 80, 97, 200])
def test_text_is_no_wider_than_the_terminal(report: Report, width: int) -> None:
    lines = text.render(report, width=width).splitlines()
    assert [line for line in lines if len(line) > width] == []
    assert [line for line in lines if line != line.rstrip()] == []


@each_report
def test_text_with_colour_is_the_same_text(report: Report) -> None:
    coloured = text.render(report, styles=text.COLOUR)
    assert "\x1b[" in coloured
    plain = re.sub(r"\x1b\[[0-9;]*m", "", coloured)
    assert [line.rstrip() for line in plain.splitlines()] == text.render(report).splitlines()


def test_text_has_each_fields_name_value_and_meaning() -> None:
    rendered = text.render(REPORTS["bzimage"], width=120)
    assert re.search(r"0x238  cmdline_size +2047 +the longest command line", rendered)
    assert re.search(r"x LOADED_HIGH: a bzImage", rendered)
    assert re.search(r"- QUIET_FLAG: ", rendered)
    assert "(Documentation/arch/x86/boot.rst, Details of Header Fields)" in rendered


def test_text_draws_the_map() -> None:
    lines = text.render(REPORTS["elf"], width=80).splitlines()
    start = lines.index("Guest memory of 16 MiB (not to scale)")
    drawn = lines[start:]
    assert "    0x0020_0000  │ kernel r-x                           4 KiB │" in drawn
    assert "    0x000e_0000  │ ACPI tables                        128 KiB │" in drawn


@pytest.mark.parametrize("width", [40, 80])
def test_text_tells_what_lies_wrong(width: int) -> None:
    rendered = text.render(REPORTS["elsewhere"], width=width)
    assert "not RAM" in rendered


def test_text_begins_with_whether_it_boots() -> None:
    assert text.render(REPORTS["elf"]).splitlines()[:2] == ["image", "pyvmm can boot it."]
    assert text.render(REPORTS["cut off"]).splitlines()[1] == "pyvmm cannot boot it:"


# JSON: the contract is docs/explain.md

FIELD = {
    "value": (int, str, type(None)),
    "hex": (str, type(None)),
    "shown": str,
    "offset": (int, type(None)),
    "size": (int, type(None)),
    "meaning": str,
    "source": str,
    "bits": dict,
}
CELL = {name: FIELD[name] for name in ("value", "hex", "shown")}
SECTION = {
    "title": str,
    "source": str,
    "about": str,
    "fields": dict,
    "table": (dict, type(None)),
}
SPAN = {
    "kind": str,
    "name": str,
    "base_gpa": int,
    "base_hex": str,
    "size_bytes": int,
    "problem": (str, type(None)),
}
REPORT = {
    "format_version": int,
    "name": str,
    "size_bytes": int,
    "format": (str, type(None)),
    "bootable": bool,
    "problem": (dict, type(None)),
    "sections": dict,
    "memory_map": (dict, type(None)),
}
PROBLEM = {"message": str, "rule": str, "text": str, "source": str}


def check(value: dict[str, Any], schema: dict[str, Any]) -> None:
    assert list(value) == list(schema)
    for name, types in schema.items():
        assert isinstance(value[name], types), (name, value[name])


@each_report
def test_json_has_the_keys_and_types_that_are_documented(report: Report) -> None:
    data = json.loads(as_json.render(report))
    check(data, REPORT)
    assert data["bootable"] is (data["problem"] is None)
    if data["problem"]:
        check(data["problem"], PROBLEM)
    all_sections = (*report.sections, *report.boot_sections)
    assert len(data["sections"]) == len(all_sections)  # each key is there once
    for section in data["sections"].values():
        check(section, SECTION)
        for field in section["fields"].values():
            check(field, FIELD)
            assert field["hex"] is None or int(field["hex"], 16) == field["value"]
            for bit in field["bits"].values():
                check(bit, {"mask": int, "is_set": bool, "meaning": str})
        if section["table"]:
            check(section["table"], {"columns": dict, "rows": list})
            for row in section["table"]["rows"]:
                assert list(row) == list(section["table"]["columns"])
                for cell in row.values():
                    check(cell, CELL)
    if data["memory_map"]:
        check(data["memory_map"], {"memory_bytes": int, "spans": list})
        for span in data["memory_map"]["spans"]:
            check(span, SPAN)
            assert span["kind"] in [kind.value for kind in SpanKind]


@each_report
def test_json_keeps_every_field(report: Report) -> None:
    data = json.loads(as_json.render(report))
    for section in (*report.sections, *report.boot_sections):
        fields = data["sections"][section.key]["fields"]
        assert [fields[field.name]["value"] for field in section.fields] == [
            field.value for field in section.fields
        ]


def test_json_is_reached_by_names() -> None:
    data = json.loads(as_json.render(REPORTS["bzimage"]))
    fields = data["sections"]["setup_header"]["fields"]
    assert fields["init_size"]["value"] == 0x30_0000
    assert fields["init_size"]["offset"] == 0x260  # boot.rst
    assert fields["xloadflags"]["bits"]["XLF_KERNEL_64"]["is_set"] is True


# HTML

XHTML = "{http://www.w3.org/1999/xhtml}"


@each_report
def test_html_is_well_formed_and_needs_nothing_else(report: Report) -> None:
    rendered = as_html.render(report)
    root = ElementTree.fromstring(rendered)
    assert root.tag == f"{XHTML}html"
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert len(ids) == len(set(ids))
    links = [element.get("href", "") for element in root.iter(f"{XHTML}a")]
    assert {link.removeprefix("#") for link in links} == set(ids)
    assert not re.search(r"""(src|href)=["'](?!#)|url\(|@import|<script""", rendered)


@each_report
def test_html_has_every_field_and_span(report: Report) -> None:
    root = ElementTree.fromstring(as_html.render(report))
    texts = {"".join(element.itertext()) for element in root.iter()}
    for section in (*report.sections, *report.boot_sections):
        for field in section.fields:
            assert {field.name, field.shown} <= texts
    if report.memory_map is not None:
        assert len(list(root.iter(f"{XHTML}rect"))) == len(report.memory_map.spans)


def test_html_escapes_what_an_image_is_called() -> None:
    root = ElementTree.fromstring(as_html.render(REPORTS["text"]))
    title = root.find(f".//{XHTML}h1")
    assert title is not None
    assert title.text == "a<b>&\u00e9"
