"""A Report as a page for browsers: one file, with nothing to fetch, and the map drawn in SVG.

It is XHTML, so that any XML parser reads it too. In the map a span's height grows with the
logarithm of its size: 48 bytes of GDT and 512 MiB of RAM are both to be seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from math import log2

from pyvmm.explain.fields import address, human_size
from pyvmm.explain.model import (
    Bit,
    Field,
    MemoryMap,
    Problem,
    Report,
    Section,
    Span,
    SpanKind,
    Table,
)

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --quiet: #777; --good: #1a7f37; --bad: #cf222e;
  --placed: #4493f8; --reserved: #d29922; --device: #a371f7; --free: #8881; --hole: #8883; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; overflow-wrap: anywhere; } h2 { font-size: 1.1rem; margin-top: 2.5rem; }
h2 small { font-weight: normal; color: var(--quiet); }
p { max-width: 48rem; } .good { color: var(--good); } .bad { color: var(--bad); }
table { border-collapse: collapse; width: 100%; }
th { text-align: left; font-weight: 600; color: var(--quiet); }
th, td { padding: .15rem .6rem .15rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: anywhere; }
code, td.v { font-family: ui-monospace, monospace; font-size: .9em; }
ul { margin: .2rem 0; padding-left: 0; list-style: none; } li.off { color: var(--quiet); }
nav a { margin-right: .8rem; } .wide { overflow-x: auto; }
svg { max-width: 100%; height: auto; } svg text { font: 12px ui-monospace, monospace;
  fill: currentColor; }
svg rect { stroke: var(--line); } .placed { fill: var(--placed); fill-opacity: .35; }
.reserved { fill: var(--reserved); fill-opacity: .3; } .device { fill: var(--device);
  fill-opacity: .3; } .free { fill: var(--free); } .hole { fill: var(--hole); }
svg rect.wrong { fill: var(--bad); fill-opacity: .35; } svg text.wrong { fill: var(--bad); }
"""

# The map's measures, in pixels.
_ROW = 20
_PER_DOUBLING = 1.2
_LEFT = 130
_BOX = 360
_WIDTH = 900


def render(report: Report) -> str:
    """The report as a whole XHTML document."""
    return "\n".join(_document(report)) + "\n"


def _document(report: Report) -> Iterator[str]:
    name = escape(report.name)
    yield "<!DOCTYPE html>"
    yield '<html xmlns="http://www.w3.org/1999/xhtml" lang="en">'
    yield '<head><meta charset="utf-8"/>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
    yield f"<title>{name}</title><style>{_STYLE}</style></head><body>"
    yield f"<h1>{name}</h1>"
    yield from _verdict(report.problem)
    yield "<nav>"
    yield from _links(report.sections)
    if report.memory_map is not None:
        yield '<a href="#memory_map">Guest memory</a>'
    yield from _links(report.boot_sections)
    yield "</nav>"
    for section in report.sections:
        yield from _section(section)
    if report.memory_map is not None:
        yield from _memory_map(report.memory_map)
    for section in report.boot_sections:
        yield from _section(section)
    yield "</body></html>"


def _links(sections: tuple[Section, ...]) -> Iterator[str]:
    for section in sections:
        yield f'<a href="#{section.key}">{escape(section.title)}</a>'


def _verdict(problem: Problem | None) -> Iterator[str]:
    if problem is None:
        yield '<p class="good">pyvmm can boot it.</p>'
        return
    yield f'<p class="bad">pyvmm cannot boot it: {escape(problem.message)}</p>'
    if problem.rule:
        yield f"<p>Rule <code>{escape(problem.rule)}</code>: {escape(problem.text)} "
        yield f"({escape(problem.source)})</p>"


def _section(section: Section) -> Iterator[str]:
    source = f" <small>{escape(section.source)}</small>" if section.source else ""
    yield f'<section id="{section.key}"><h2>{escape(section.title)}{source}</h2>'
    if section.about:
        yield f"<p>{escape(section.about)}</p>"
    if section.fields:
        yield from _fields(section.fields)
    if section.table is not None:
        yield from _table(section.table)
    yield "</section>"


def _fields(fields: tuple[Field, ...]) -> Iterator[str]:
    has_offsets = any(field.offset is not None for field in fields)
    has_meanings = any(field.meaning for field in fields)
    yield '<div class="wide"><table><tr>'
    yield "<th>offset</th>" if has_offsets else ""
    yield "<th>name</th><th>value</th>"
    yield "<th>meaning</th></tr>" if has_meanings else "</tr>"
    for field in fields:
        yield "<tr>"
        if has_offsets:
            shown = "" if field.offset is None else f"{field.offset:#x}"
            yield f'<td class="v">{shown}</td>'
        yield f"<td><code>{escape(field.name)}</code></td>"
        yield f'<td class="v">{escape(field.shown)}</td>'
        if has_meanings:
            yield f"<td>{escape(field.meaning)}"
            yield from _bits(field.bits)
            yield "</td>"
        yield "</tr>"
    yield "</table></div>"


def _bits(bits: tuple[Bit, ...]) -> Iterator[str]:
    if not bits:
        return
    yield "<ul>"
    for bit in bits:
        kind, mark = ("on", "&#9679;") if bit.is_set else ("off", "&#9675;")
        yield f'<li class="{kind}">{mark} <code>{escape(bit.name)}</code> '
        yield f"{escape(bit.meaning)}</li>"
    yield "</ul>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="wide"><table><tr>'
    for column in table.columns:
        yield f'<th title="{escape(column.meaning)}">{escape(column.name)}</th>'
    yield "</tr>"
    for row in table.rows:
        yield "<tr>" + "".join(f'<td class="v">{escape(cell.shown)}</td>' for cell in row) + "</tr>"
    yield "</table></div>"


def _memory_map(memory_map: MemoryMap) -> Iterator[str]:
    size = human_size(memory_map.memory_bytes)
    heights = [_height(span) for span in memory_map.spans]
    yield f'<section id="memory_map"><h2>Guest memory of {size}</h2>'
    yield "<p>Heights grow with the logarithm of the size.</p>"
    yield f'<svg viewBox="0 0 {_WIDTH} {sum(heights) + _ROW:.0f}" width="{_WIDTH}" role="img">'
    y = 4.0
    for span, height in zip(memory_map.spans, heights, strict=True):
        yield from _draw(span, y, height)
        y += height
    end = max(span.end_gpa for span in memory_map.spans)
    yield f'<text x="{_LEFT - 8}" y="{y + 12:.0f}" text-anchor="end">{address(end)}</text>'
    yield "</svg></section>"


def _height(span: Span) -> float:
    doublings = log2(max(span.size_bytes, 1))
    return _ROW + (doublings * _PER_DOUBLING if span.kind is not SpanKind.HOLE else 0)


def _draw(span: Span, y: float, height: float) -> Iterator[str]:
    kind = "wrong" if span.problem else span.kind.value
    name = f"{span.name}, {human_size(span.size_bytes)}"
    yield f'<text x="{_LEFT - 8}" y="{y + 12:.0f}" text-anchor="end">'
    yield f"{address(span.base_gpa)}</text>"
    yield f'<rect class="{kind}" x="{_LEFT}" y="{y:.1f}" width="{_BOX}" height="{height:.1f}">'
    yield f"<title>{address(span.base_gpa)} to {address(span.end_gpa)}: {escape(name)}</title>"
    yield f'</rect><text x="{_LEFT + 10}" y="{y + height / 2 + 4:.0f}">{escape(name)}</text>'
    if span.problem:
        x = _LEFT + _BOX + 10
        yield f'<text class="wrong" x="{x}" y="{y + height / 2 + 4:.0f}">{escape(span.problem)}'
        yield "</text>"
