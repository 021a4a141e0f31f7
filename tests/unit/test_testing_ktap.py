"""KTAP, as Documentation/dev-tools/ktap.rst and kselftest print it."""

from __future__ import annotations

from pyvmm.testing.ktap import KtapResult, parse_ktap


def outcomes(text: str) -> list[tuple[str, str]]:
    return [(result.name, result.outcome) for result in parse_ktap(text)]


# The example of ktap.rst.
EXAMPLE = """\
KTAP version 1
1..1
  KTAP version 1
  1..3
    KTAP version 1
    1..1
    # test_1: initializing test_1
    ok 1 test_1
  ok 1 example_test_1
    KTAP version 1
    1..2
    ok 1 test_1 # SKIP test_1 skipped
    ok 2 test_2
  ok 2 example_test_2
    KTAP version 1
    1..3
    ok 1 test_1
    # test_2: FAIL
    not ok 2 test_2
    ok 3 test_3 # SKIP test_3 skipped
  not ok 3 example_test_3
not ok 1 main_test
"""


def test_example_of_the_specification() -> None:
    assert outcomes(EXAMPLE) == [
        ("main_test/example_test_1/test_1", "passed"),
        ("main_test/example_test_1", "passed"),
        ("main_test/example_test_2/test_1", "skipped"),
        ("main_test/example_test_2/test_2", "passed"),
        ("main_test/example_test_2", "passed"),
        ("main_test/example_test_3/test_1", "passed"),
        ("main_test/example_test_3/test_2", "failed"),
        ("main_test/example_test_3/test_3", "skipped"),
        ("main_test/example_test_3", "failed"),
        ("main_test", "failed"),
    ]


def test_time_stamps_and_other_lines_are_no_obstacle() -> None:
    text = """\
[    0.100000] Linux version 6.1
[    1.000000] KTAP version 1
[    1.000001] 1..2
[    1.000002]     KTAP version 1
[    1.000003]     # Subtest: suite
[    1.000004]     1..1
[    1.500000] random: crng init done
[    1.600000]     ok 1 case
[    1.700000] # suite: pass:1 fail:0 skip:0 total:1
[    1.700001] ok 1 suite
[    1.800000] not ok 2 other
"""
    assert outcomes(text) == [
        ("suite/case", "passed"),
        ("suite", "passed"),
        ("other", "failed"),
    ]


def test_reasons_and_diagnostics_are_kept() -> None:
    text = (
        "TAP version 13\n1..2\nok 1 - one # SKIP no hardware\n# expected 1\n# got 2\nnot ok 2 two\n"
    )
    assert parse_ktap(text) == [
        KtapResult("one", "skipped", "no hardware"),
        KtapResult("two", "failed", "", ("expected 1", "got 2")),
    ]


def test_planned_tests_without_a_result_have_failed() -> None:
    assert outcomes("KTAP version 1\n1..3\nok 1 one\n") == [
        ("one", "passed"),
        ("test 2", "failed"),
        ("test 3", "failed"),
    ]


def test_report_that_ends_within_a_subtest_has_failed() -> None:
    text = "KTAP version 1\n1..1\n  KTAP version 1\n  1..2\n  ok 1 a\n"
    assert outcomes(text) == [("a", "passed"), ("test 2", "failed"), ("test 1", "failed")]


def test_bail_out_is_a_failure() -> None:
    (_, bail_out) = parse_ktap("KTAP version 1\nok 1 a\nBail out! no memory\n")
    assert (bail_out.outcome, bail_out.reason) == ("failed", "no memory")


def test_two_reports_in_one_text_are_both_read() -> None:
    assert outcomes("KTAP version 1\n1..1\nok 1 a\nKTAP version 1\n1..1\nnot ok 1 b\n") == [
        ("a", "passed"),
        ("b", "failed"),
    ]


def test_expected_failures_are_no_failures() -> None:
    assert outcomes("KTAP version 1\n1..2\nnot ok 1 a # TODO later\nok 2 b # TODO\n") == [
        ("a", "skipped"),
        ("b", "passed"),
    ]


def test_text_without_a_version_line_has_no_results() -> None:
    assert parse_ktap("ok 1 this is no report\n1..3\n") == []
