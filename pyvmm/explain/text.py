"""A Report as lines for a terminal, no wider than it is.

    Setup header (boot.rst, Details of Header Fields)
      What the kernel tells a boot loader ...

      0x1f1  setup_sects  39 (kernel at 0x5000)  512-byte sectors of setup code; 0 means 4

Where there is no room for the meaning beside the value it goes below. A table that is too wide is
folded: what of a row does not fit stands on the lines below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from textwrap import TextWrapper
from typing import NamedTuple

from pyvmm.explain.fields import address, human_size
from pyvmm.explain.model import Field, MemoryMap, Problem, Report, Section, Span, SpanKind, Table

MINIMUM_WIDTH = 40

_MEANING_MINIMUM = 24
_BOX_WIDTH = 44
_GAP = "  "
_FOLD_INDENT = " " * 6

Style = Callable[[str], str]


class Styles(NamedTuple):
    """What makes text look like something. Applied last: it takes no place on the terminal."""

    title: Style
    name: Style
    value: Style
    quiet: Style
    good: Style
    bad: Style


def _plain(text: str) -> str:
    return text


def _sgr(codes: str) -> Style:
    """ECMA-48's Select Graphic Rendition around a text."""
    return lambda text: f"\x1b[{codes}m{text}\x1b[0m" if text else text


PLAIN = Styles(*[_plain] * 6)
COLOUR = Styles(
    title=_sgr("1;36"),
    name=_sgr("1"),
    value=_sgr("32"),
    quiet=_sgr("2"),
    good=_sgr("1;32"),
    bad=_sgr("1;31"),
)


def render(report: Report, *, width: int = 80, styles: Styles = PLAIN) -> str:
    """The report as text, its lines at most ``width`` characters (at least MINIMUM_WIDTH)."""
    width = max(width, MINIMUM_WIDTH)
    return "\n".join(_Renderer(width, styles).lines(report)) + "\n"


class _Renderer:
    def __init__(self, width: int, styles: Styles) -> None:
        self.width = width
        self.styles = styles

    def lines(self, report: Report) -> Iterator[str]:
        for line in _wrap(report.name, self.width):
            yield self.styles.title(line)
        yield from self._verdict(report.problem)
        for section in report.sections:
            yield from self._section(section)
        if report.memory_map is not None:
            yield from self._memory_map(report.memory_map)
        for section in report.boot_sections:
            yield from self._section(section)

    def _verdict(self, problem: Problem | None) -> Iterator[str]:
        if problem is None:
            yield self.styles.good("pyvmm can boot it.")
            return
        yield self.styles.bad("pyvmm cannot boot it:")
        yield from self._paragraph(problem.message)
        if problem.rule:
            yield from self._paragraph(f"rule {problem.rule}: {problem.text} ({problem.source})")

    def _section(self, section: Section) -> Iterator[str]:
        yield ""
        yield from self._heading(section.title, section.source)
        if section.about:
            yield from (self.styles.quiet(line) for line in self._paragraph(section.about))
        if section.fields:
            yield from self._fields(section.fields)
        if section.table is not None:
            yield from self._table(section.table)

    def _heading(self, title: str, source: str) -> Iterator[str]:
        if source and len(title) + len(source) + 3 <= self.width:
            yield f"{self.styles.title(title)} {self.styles.quiet(f'({source})')}"
            return
        yield self.styles.title(title)
        if source:
            yield from (self.styles.quiet(line) for line in self._paragraph(f"({source})"))

    def _paragraph(self, text: str, indent: int = 2) -> list[str]:
        space = " " * indent
        return _wrap(text, self.width, initial_indent=space, subsequent_indent=space)

    # Fields

    def _fields(self, fields: tuple[Field, ...]) -> Iterator[str]:
        offsets = [hex(field.offset) if field.offset is not None else "" for field in fields]
        offset_width = max(map(len, offsets))
        name_width = max(len(field.name) for field in fields)
        indent = len(_GAP) + name_width + len(_GAP)
        if offset_width:
            indent += offset_width + len(_GAP)
        is_narrow = self.width - indent < _MEANING_MINIMUM
        if is_narrow:  # the value goes below as well
            indent = len(_FOLD_INDENT)
        value_width = self._best_value_width(fields, indent)
        for field, offset in zip(fields, offsets, strict=True):
            start = _GAP
            if offset_width:
                start += self.styles.quiet(offset.rjust(offset_width)) + _GAP
            start += self.styles.name(field.name.ljust(name_width)) + _GAP
            lines = self._value_and_meaning(field, indent, value_width)
            if is_narrow:
                yield start.rstrip()
            else:
                yield (start + lines.pop(0)).rstrip()
            yield from (" " * indent + line for line in lines)
            for bit in field.bits:
                mark = "x" if bit.is_set else "-"
                text = f"{mark} {bit.name}: {bit.meaning}"
                lines = _wrap(text, self.width - indent, subsequent_indent="  ")
                style = self.styles.value if bit.is_set else self.styles.quiet
                yield from (" " * indent + style(line) for line in lines)

    def _best_value_width(self, fields: tuple[Field, ...], indent: int) -> int:
        """The width of the values' column that makes for the fewest lines."""
        lengths = {len(field.shown) for field in fields}
        return min(
            sorted(lengths),
            key=lambda width: sum(
                len(self._value_and_meaning(field, indent, width)) for field in fields
            ),
        )

    def _value_and_meaning(self, field: Field, indent: int, value_width: int) -> list[str]:
        """The lines for a field, what is left of the value not counted."""
        meaning_indent = value_width + len(_GAP)
        room = self.width - indent - meaning_indent
        if len(field.shown) > value_width or room < _MEANING_MINIMUM:
            values = _wrap(field.shown, self.width - indent) or [""]
            meanings = _wrap(field.meaning, self.width - indent)
            return [*map(self.styles.value, values), *meanings]
        first, *others = _wrap(field.meaning, room) or [""]
        value = self.styles.value(field.shown.ljust(value_width))
        return [value + _GAP + first, *(" " * meaning_indent + line for line in others)]

    # Tables

    def _table(self, table: Table) -> Iterator[str]:
        header = [column.name for column in table.columns]
        rows = [[cell.shown for cell in row] for row in table.rows]
        widths = [max(map(len, texts)) for texts in zip(header, *rows, strict=True)]
        groups = self._fold(widths)
        yield from self._row(header, widths, groups, self.styles.quiet)
        for row in rows:
            yield from self._row(row, widths, groups, _plain)

    def _fold(self, widths: list[int]) -> list[range]:
        """The columns that stand side by side: all of them, if there is room."""
        groups = []
        first, used = 0, len(_GAP)
        for index, width in enumerate(widths):
            # The last one of a line may be wrapped, but not to nothing.
            if index > first and used + min(width, _MEANING_MINIMUM) > self.width:
                groups.append(range(first, index))
                first, used = index, len(_FOLD_INDENT)
            used += width + len(_GAP)
        return [*groups, range(first, len(widths))]

    def _row(
        self, row: list[str], widths: list[int], groups: list[range], style: Style
    ) -> Iterator[str]:
        indent = _GAP
        for *before, last in groups:
            start = indent + "".join(row[index].ljust(widths[index]) + _GAP for index in before)
            lines = _wrap(row[last], max(self.width - len(start), 1)) or [""]
            yield style((start + lines[0]).rstrip())
            yield from (style(" " * len(start) + line) for line in lines[1:])
            indent = _FOLD_INDENT

    # The map

    def _memory_map(self, memory_map: MemoryMap) -> Iterator[str]:
        yield ""
        size = human_size(memory_map.memory_bytes)
        yield self.styles.title(f"Guest memory of {size} (not to scale)")
        ends = [span.end_gpa for span in memory_map.spans]
        address_width = max(len(address(end)) for end in ends)
        inside = min(_BOX_WIDTH, self.width - address_width - len(_GAP) * 2 - 2)
        space = " " * (address_width + len(_GAP))
        previous: Span | None = None
        for span in memory_map.spans:
            if previous is None:
                yield f"{space}{_GAP}┌{'─' * inside}┐"
            elif _draws_line(previous, span):
                yield f"{space}{_GAP}├{'─' * inside}┤"
            row = self._span(span, address_width, inside)
            box_end = len(space) + len(_GAP) + inside + 2
            if span.problem and box_end + 1 + len(span.problem) > self.width:
                yield row
                yield self.styles.bad(f"{space}{_GAP}^ {span.problem}"[: self.width])
            else:
                yield f"{row} {self.styles.bad(span.problem)}".rstrip()
            previous = span
        yield f"{_GAP}{address(max(ends)).rjust(address_width)}{_GAP}└{'─' * inside}┘"

    def _span(self, span: Span, address_width: int, inside: int) -> str:
        size = human_size(span.size_bytes)
        name = span.name[: inside - len(size) - 3]
        text = f" {name}{size.rjust(inside - len(name) - 2)} "
        style = {
            SpanKind.PLACED: self.styles.value,
            SpanKind.RESERVED: self.styles.name,
        }.get(span.kind, self.styles.quiet)
        if span.problem:
            style = self.styles.bad
        gpa = address(span.base_gpa).rjust(address_width)
        return f"{_GAP}{self.styles.quiet(gpa)}{_GAP}│{style(text)}│"


def _wrap(
    text: str, width: int, *, initial_indent: str = "", subsequent_indent: str = ""
) -> list[str]:
    """``text`` in lines of ``width``; names with hyphens in them stay whole."""
    wrapper = TextWrapper(
        width,
        initial_indent=initial_indent,
        subsequent_indent=subsequent_indent,
        break_on_hyphens=False,
    )
    # It leaves white space where it has broken a word that is too long.
    return [line.rstrip() for line in wrapper.wrap(text)]


def _draws_line(lower: Span, upper: Span) -> bool:
    """Whether a line stands between them: where RAM ends and begins, and around the devices."""
    ram = (SpanKind.FREE, SpanKind.PLACED)
    return lower.end_gpa != upper.base_gpa or (lower.kind in ram) != (upper.kind in ram)
