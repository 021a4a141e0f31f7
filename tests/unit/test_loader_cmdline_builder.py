"""The command line's builder: what the kernel reads is what was meant.

The table LINES is what next_arg() of Linux's lib/cmdline.c does with each line, worked out from
its source; tests/lab/test_cmdline.py has a kernel say it itself.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm.errors import CmdlineError
from pyvmm.loader.cmdline_builder import Cmdline
from pyvmm.units import GiB, KiB, MiB


def built(*additions: Callable[[Cmdline], None], capacity_bytes: int = 2048) -> str:
    cmdline = Cmdline(capacity_bytes)
    for add in additions:
        add(cmdline)
    return str(cmdline)


def broken_rule(action: Callable[[], object]) -> str:
    with pytest.raises(CmdlineError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value.rule


def test_nothing_added_is_an_empty_line() -> None:
    assert built() == ""


def test_parameters_are_separated_by_spaces() -> None:
    assert (
        built(
            lambda line: line.insert("console", "ttyS0"),
            lambda line: line.insert_str("quiet  loglevel=3 "),
            lambda line: line.insert("root", ""),
        )
        == "console=ttyS0 quiet loglevel=3 root="
    )


def test_value_with_spaces_is_quoted() -> None:
    assert built(lambda line: line.insert("motd", "hello  world")) == 'motd="hello  world"'


def test_several_values_are_joined_by_commas() -> None:
    assert (
        built(lambda line: line.insert_multiple("console", ["ttyS0", "115200"]))
        == "console=ttyS0,115200"
    )


def test_several_values_with_spaces_are_quoted_as_one() -> None:
    assert built(lambda line: line.insert_multiple("a", ["b c", "d"])) == 'a="b c,d"'


def test_init_arguments_come_last() -> None:
    assert (
        built(
            lambda line: line.insert_init_args("single", "two words"),
            lambda line: line.insert("quiet", "1"),
            lambda line: line.insert_init_args("", "x=y z"),
        )
        == 'quiet=1 -- single "two words" "" "x=y z"'
    )


def test_init_arguments_alone() -> None:
    assert built(lambda line: line.insert_init_args("single")) == "-- single"


@pytest.mark.parametrize(
    ("size_bytes", "written"),
    [
        (1, "1"),
        (1023, "1023"),
        (KiB, "1K"),
        (4 * KiB, "4K"),
        (4 * KiB + 1, "4097"),
        (1025 * KiB, "1025K"),
        (MiB, "1M"),
        (1536 * MiB, "1536M"),
        (2 * GiB, "2G"),
        (2048 * GiB, "2048G"),
    ],
)
def test_virtio_device_has_its_size_in_the_largest_unit(size_bytes: int, written: str) -> None:
    def add(line: Cmdline) -> None:
        line.add_virtio_mmio_device(size_bytes, 0xC000_1000, 5)

    assert built(add) == f"virtio_mmio.device={written}@0xc0001000:5"


def test_virtio_device_may_have_a_number() -> None:
    def add(line: Cmdline) -> None:
        line.add_virtio_mmio_device(4 * KiB, 0xC000_1000, 5, 0)

    assert built(add) == "virtio_mmio.device=4K@0xc0001000:5:0"


LINES: list[tuple[str, list[tuple[str, str | None]]]] = [
    ("", []),
    ("   ", []),
    (" quiet  debug ", [("quiet", None), ("debug", None)]),
    ("console=ttyS0,115200", [("console", "ttyS0,115200")]),
    ("a=b=c", [("a", "b=c")]),
    ("a=", [("a", "")]),
    ("=a", [("=a", None)]),  # an = in the first place is not one that separates
    ("=a=b", [("=a", "b")]),
    ("==", [("=", "")]),
    ('a="b c" d', [("a", "b c"), ("d", None)]),
    ('"a=b c" d', [("a", "b c"), ("d", None)]),
    ('"a b" c', [("a b", None), ("c", None)]),
    ('a=""', [("a", "")]),
    ('"" a', [("", None), ("a", None)]),
    ('a=b"c d"e', [("a", 'b"c d"e')]),  # only quotes at the ends are dropped
    ('a="b"c', [("a", 'b"c')]),
    ('a=b"c d"', [("a", 'b"c d"')]),
    ('a"b c"=d', [('a"b c"', "d")]),
    ('"a"=b', [('a"', "b")]),
    ('"a="b c""', [("a", "b"), ('c""', None)]),
    ('a="b""c"', [("a", 'b""c')]),
    ("a --=b", [("a", None), ("--", "b")]),
    ("a --b", [("a", None), ("--b", None)]),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_line_is_read_as_the_kernel_reads_it(
    line: str, expected: list[tuple[str, str | None]]
) -> None:
    cmdline = Cmdline.parse(line)
    assert cmdline.parameters == tuple(expected)
    assert cmdline.init_arguments == ()


@pytest.mark.parametrize(
    ("line", "parameters", "init"),
    [
        ("a=b -- c", [("a", "b")], ["c"]),
        ("-- c", [], ["c"]),
        ("a --", [("a", None)], []),
        ('a "--" c', [("a", None)], ["c"]),  # quotes are dropped before it is compared
        ('a="--" c', [("a", "--"), ("c", None)], []),
        ('-- x=y "b c" d="e f" "g=h i" ""', [], ["x=y", "b c", "d=e f", "g=h i", ""]),
    ],
)
def test_words_after_two_hyphens_are_for_init(
    line: str, parameters: list[tuple[str, str | None]], init: list[str]
) -> None:
    cmdline = Cmdline.parse(line)
    assert cmdline.parameters == tuple(parameters)
    assert cmdline.init_arguments == tuple(init)


def test_parsed_line_goes_on() -> None:
    cmdline = Cmdline.parse('  a="b c"   d"e f" --  single ')
    cmdline.insert("g", "h")
    cmdline.insert_init_args("last")
    assert str(cmdline) == 'a="b c" d"e f" g=h -- single last'


bounded = settings(derandomize=True, deadline=None, database=None)
values = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E, exclude_characters='"'))
keys = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"='), min_size=1
)


@bounded
@given(
    st.lists(st.tuples(keys, values)),
    st.lists(values.filter(lambda argument: argument != "--")),
)
def test_kernel_reads_what_was_added(pairs: list[tuple[str, str]], init: list[str]) -> None:
    cmdline = Cmdline(1 << 16)
    for key, value in pairs:
        cmdline.insert(key, value)
    cmdline.insert_init_args(*init)
    read = Cmdline.parse(str(cmdline), 1 << 16)
    assert read.parameters == tuple(pairs)
    assert read.init_arguments == tuple(init)
    assert str(read) == str(cmdline)


@bounded
@given(st.text(st.sampled_from(' "=-ab')))
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        cmdline = Cmdline.parse(line)
    except CmdlineError:
        return
    again = Cmdline.parse(str(cmdline))
    assert (again.parameters, again.init_arguments) == (
        cmdline.parameters,
        cmdline.init_arguments,
    )


def test_capacity_counts_the_nul() -> None:
    cmdline = Cmdline(6)
    cmdline.insert("a", "bcd")
    assert str(cmdline) == "a=bcd"
    assert broken_rule(lambda: cmdline.insert_str("e")) == "cmdline-room"
    assert broken_rule(lambda: cmdline.insert_init_args("e")) == "cmdline-room"
    assert str(cmdline) == "a=bcd"


def test_capacity_of_the_nul_alone_holds_the_empty_line() -> None:
    cmdline = Cmdline(1)
    cmdline.insert_str("")
    assert str(cmdline) == ""
    assert broken_rule(lambda: cmdline.insert_str("a")) == "cmdline-room"


def test_capacity_is_that_of_linux_unless_given() -> None:
    assert len(str(Cmdline.parse("x" * 2047))) == 2047
    assert broken_rule(lambda: Cmdline.parse("x" * 2048)) == "cmdline-room"


@pytest.mark.parametrize(
    ("rule", "add"),
    [
        ("cmdline-ascii", lambda line: line.insert("k\u00e9y", "value")),
        ("cmdline-ascii", lambda line: line.insert("key", "val\nue")),
        ("cmdline-ascii", lambda line: line.insert_multiple("key", ["a", "\x7f"])),
        ("cmdline-ascii", lambda line: line.insert_str("a\tb")),
        ("cmdline-ascii", lambda line: line.insert_init_args("\x00")),
        ("cmdline-ascii", lambda line: Cmdline.parse("\ud800")),
        ("cmdline-key-empty", lambda line: line.insert("", "value")),
        ("cmdline-key-space", lambda line: line.insert("k ey", "value")),
        ("cmdline-key-equals", lambda line: line.insert("k=ey", "value")),
        ("cmdline-key-quote", lambda line: line.insert('k"ey', "value")),
        ("cmdline-value-quote", lambda line: line.insert("key", 'a "b" c')),
        ("cmdline-values-none", lambda line: line.insert_multiple("key", [])),
        ("cmdline-quote-open", lambda line: line.insert_str('a="b c')),
        ("cmdline-quote-open", lambda line: Cmdline.parse('"')),
        ("cmdline-init-quote", lambda line: line.insert_init_args('"a"')),
        ("cmdline-separator", lambda line: line.insert_str("a -- b")),
        ("cmdline-separator", lambda line: line.insert_str('a "--"')),
        ("cmdline-separator", lambda line: line.insert_init_args("a", "--")),
        ("cmdline-separator", lambda line: Cmdline.parse("a -- b -- c")),
        ("cmdline-capacity", lambda line: Cmdline(0)),
        ("cmdline-virtio-size", lambda line: line.add_virtio_mmio_device(0, 0, 5)),
        ("cmdline-virtio-address", lambda line: line.add_virtio_mmio_device(4096, -1, 5)),
        ("cmdline-virtio-address", lambda line: line.add_virtio_mmio_device(2, (1 << 63) - 1, 5)),
        ("cmdline-virtio-irq", lambda line: line.add_virtio_mmio_device(4096, 0, 0)),
        ("cmdline-virtio-irq", lambda line: line.add_virtio_mmio_device(4096, 0, 1 << 32)),
        ("cmdline-virtio-id", lambda line: line.add_virtio_mmio_device(4096, 0, 5, -1)),
        ("cmdline-virtio-id", lambda line: line.add_virtio_mmio_device(4096, 0, 5, 1 << 31)),
    ],
)
def test_broken_rule_is_told_and_nothing_is_added(
    rule: str, add: Callable[[Cmdline], object]
) -> None:
    cmdline = Cmdline()
    cmdline.insert_str("quiet")
    assert broken_rule(lambda: add(cmdline)) == rule
    assert str(cmdline) == "quiet"


def test_highest_virtio_device_is_taken() -> None:
    cmdline = Cmdline()
    cmdline.add_virtio_mmio_device(1, (1 << 63) - 1, (1 << 32) - 1, (1 << 31) - 1)
    assert str(cmdline) == "virtio_mmio.device=1@0x7fffffffffffffff:4294967295:2147483647"
