"""KTAP: the results that tests in a kernel, or a script in its user space, print.

    KTAP version 1
    1..2
      KTAP version 1            a subtest, indented: its results come before its own line
      1..1
      ok 1 first
    ok 1 suite
    not ok 2 other # TODO later

Specification: Documentation/dev-tools/ktap.rst (Linux 6.12), and TAP 13 and 14 as far as kselftest
writes it. printk's time stamps may stand in front of each line; other lines are diagnostics, and
belong to the test after them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VERSION = re.compile(r"K?TAP version \d+")
_PLAN = re.compile(r"1\.\.(\d+)(?: *# *SKIP\b *(.*))?", re.IGNORECASE)
_RESULT = re.compile(r"(not )?ok\b *(\d+)?(?: *- | +)?([^#]*?) *(?:# *(\w+) *:? *(.*))?$")
_BAIL_OUT = re.compile(r"Bail out!\s*(.*)")
_PRINTK = re.compile(r"^(?:<\d+>)?\[ *\d+\.\d+\](?:\[ *[TC]\d+\])? ")

_FAILED, _PASSED, _SKIPPED = "failed", "passed", "skipped"


class KtapResult(NamedTuple):
    """One test's result."""

    name: str
    """With the names of the tests that it is part of: ``suite/first``."""
    outcome: str
    """``passed``, ``failed`` or ``skipped``."""
    reason: str = ""
    """Why it was skipped, or what was wrong with its report."""
    diagnostics: tuple[str, ...] = ()
    """The lines before it that are no results."""


class _Level(NamedTuple):
    """A list of tests that is being read, at one indentation."""

    indent: int
    planned: int | None
    results: list[KtapResult]
    """Of the tests at this level, and of those in them."""
    own: list[KtapResult]
    """Of the tests at this level alone."""


def parse_ktap(text: str) -> list[KtapResult]:
    """The results in ``text``, a console's: of a test with parts, the parts and then the whole.

    A test that was planned and has no result has failed: the guest did not get so far.
    """
    done: list[KtapResult] = []
    levels: list[_Level] = []
    diagnostics: list[str] = []
    for raw_line in text.splitlines():
        line = _PRINTK.sub("", raw_line)
        content = line.strip()
        indent = len(line) - len(line.lstrip())
        if _VERSION.fullmatch(content):
            if not levels or indent <= levels[0].indent:
                _finish(levels, done)
            levels.append(_Level(indent, None, [], []))
            diagnostics = []
        elif not levels:
            continue
        elif plan := _PLAN.fullmatch(content):
            if indent > levels[-1].indent:  # kselftest begins a level without a version line
                levels.append(_Level(indent, None, [], []))
            levels[-1] = levels[-1]._replace(planned=int(plan[1]))
        elif bail_out := _BAIL_OUT.match(content):
            levels[-1].results.append(KtapResult("Bail out!", _FAILED, bail_out[1]))
        elif result := _RESULT.fullmatch(content):
            _take_result(levels, indent, result, tuple(diagnostics))
            diagnostics = []
        else:
            diagnostics.append(content.removeprefix("#").strip())
    _finish(levels, done)
    return done


def _take_result(
    levels: list[_Level], indent: int, match: re.Match[str], diagnostics: tuple[str, ...]
) -> None:
    not_ok, number, description, directive, reason = match.groups()
    parts: list[KtapResult] = []
    while len(levels) > 1 and levels[-1].indent > indent:
        parts = _close(levels.pop())
    name = description.strip() or f"test {number or len(levels[-1].own) + 1}"
    outcome = _FAILED if not_ok else _PASSED
    if (directive or "").upper() == "SKIP":
        outcome = _SKIPPED
    elif (directive or "").upper() in ("TODO", "XFAIL"):
        outcome = _SKIPPED if not_ok else _PASSED
    note = " ".join(filter(None, [directive if directive != "SKIP" else "", reason]))
    result = KtapResult(name, outcome, note, diagnostics)
    levels[-1].results.extend(part._replace(name=f"{name}/{part.name}") for part in parts)
    levels[-1].results.append(result)
    levels[-1].own.append(result)


def _close(level: _Level) -> list[KtapResult]:
    """What came of ``level``; tests that never reported are added as failed."""
    if level.planned is None:
        return level.results
    missing = [
        KtapResult(f"test {number}", _FAILED, f"no result; 1..{level.planned} were planned")
        for number in range(len(level.own) + 1, level.planned + 1)
    ]
    return [*level.results, *missing]


def _finish(levels: list[_Level], done: list[KtapResult]) -> None:
    """The text is over, or a new report begins: whatever is open is closed."""
    while len(levels) > 1:
        parts = _close(levels.pop())
        levels[-1].results.extend(parts)
    if levels:
        done.extend(_close(levels.pop()))
