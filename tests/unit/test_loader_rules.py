"""The keys that errors carry and the table that explains them are held against each other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pyvmm
from pyvmm.errors import KernelImageError
from pyvmm.loader.rules import RULES

ERRORS = {"KernelImageError", "InitrdError", "CmdlineError", "DeviceTreeError", "GuestMemoryError"}


def raised_rules() -> Iterator[tuple[str, str]]:
    """Where each error with a rule is made, and the rule.

    It is an error's second argument, or what another call is given as ``rule``; a literal.
    """
    root = Path(pyvmm.__file__).parent
    for path in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            given = [keyword.value for keyword in node.keywords if keyword.arg == "rule"]
            if isinstance(node.func, ast.Name) and node.func.id in ERRORS:
                given += node.args[1:2]
            for rule in given:
                if isinstance(rule, ast.Constant):
                    yield f"{path.relative_to(root)}:{node.lineno}", str(rule.value)


def test_rules_raised_are_all_in_the_table() -> None:
    unknown = [(where, rule) for where, rule in raised_rules() if rule not in RULES]
    assert not unknown


def test_rules_in_the_table_are_all_raised_somewhere() -> None:
    assert set(RULES) == {rule for _, rule in raised_rules()}


def test_rules_have_a_text_and_a_source() -> None:
    assert all(rule.text and rule.source for rule in RULES.values())


def test_error_about_a_file_keeps_its_rule() -> None:
    error = KernelImageError("is cut off", "file-read").about("vmlinux")
    assert (str(error), error.rule) == ("vmlinux: is cut off", "file-read")
