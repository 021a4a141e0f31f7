"""A Report for programs. docs/explain.md is the contract: keys are added, never changed.

Numbers are numbers; beside each is ``hex``, as people and other tools write it. Sections, fields
and columns are objects by their names, in the order in which they are in the image.
"""

from __future__ import annotations

import json
from typing import Any

from pyvmm.explain.model import Cell, Field, MemoryMap, Problem, Report, Section, Table

FORMAT_VERSION = 1
"""Raised if a key changes its meaning or goes."""


def render(report: Report) -> str:
    """The report as one JSON object, indented."""
    return json.dumps(to_object(report), indent=2) + "\n"


def to_object(report: Report) -> dict[str, Any]:
    """What ``render`` writes, as dicts and lists."""
    return {
        "format_version": FORMAT_VERSION,
        "name": report.name,
        "size_bytes": report.size_bytes,
        "format": report.format,
        "bootable": report.problem is None,
        "problem": _problem(report.problem),
        "sections": {
            section.key: _section(section) for section in (*report.sections, *report.boot_sections)
        },
        "memory_map": _memory_map(report.memory_map) if report.memory_map else None,
    }


def _problem(problem: Problem | None) -> dict[str, Any] | None:
    return problem._asdict() if problem else None


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "source": section.source,
        "about": section.about,
        "fields": {field.name: _field(field, section.source) for field in section.fields},
        "table": _table(section.table) if section.table else None,
    }


def _field(field: Field, source: str) -> dict[str, Any]:
    return {
        **_value(field),
        "offset": field.offset,
        "size": field.size,
        "meaning": field.meaning,
        "source": field.source or source,
        "bits": {
            bit.name: {"mask": bit.mask, "is_set": bit.is_set, "meaning": bit.meaning}
            for bit in field.bits
        },
    }


def _value(item: Field | Cell) -> dict[str, Any]:
    is_number = isinstance(item.value, int)
    return {
        "value": item.value,
        "hex": f"{item.value:#x}" if is_number else None,
        "shown": item.shown,
    }


def _table(table: Table) -> dict[str, Any]:
    names = [column.name for column in table.columns]
    return {
        "columns": {column.name: column.meaning for column in table.columns},
        "rows": [
            {name: _value(cell) for name, cell in zip(names, row, strict=True)}
            for row in table.rows
        ],
    }


def _memory_map(memory_map: MemoryMap) -> dict[str, Any]:
    return {
        "memory_bytes": memory_map.memory_bytes,
        "spans": [
            {
                "kind": span.kind.value,
                "name": span.name,
                "base_gpa": span.base_gpa,
                "base_hex": f"{span.base_gpa:#x}",
                "size_bytes": span.size_bytes,
                "problem": span.problem or None,
            }
            for span in memory_map.spans
        ],
    }
