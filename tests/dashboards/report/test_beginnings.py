"""What becomes of the beginning of prompts is said where some of it skips."""

from __future__ import annotations

from dashboards.report.beginnings import about_beginnings
from dashboards.report.limits import limits
from tests.dashboards.records import DATA, with_facts


def test_blocks_that_keep_fewer_tokens_than_are_protected_are_named() -> None:
    # Of 100 tokens they keep 100, 50, 41, 40 and 5, of which one is the router's.
    schedule = (0.0, 0.5, 0.59, 0.6, 0.95)
    [said] = about_beginnings(40, None, schedule, 100)
    assert said.startswith("Blocks 3, 4 keep too few tokens of a prompt of 100 to protect its first 40:")
    [said] = about_beginnings(5, None, schedule, 100)
    assert said.startswith("Block 4 keeps too few")
    assert about_beginnings(4, None, schedule, 100) == []
    # A block that skips nothing keeps prompts that are shorter than what is protected.
    assert about_beginnings(40, None, (0.0, 0.0), 20) == []
    assert about_beginnings(0, None, schedule, 100) == about_beginnings(40, None) == []


def test_the_report_says_what_is_protected_too_little_and_what_is_not_at_all() -> None:
    said = limits(with_facts(DATA, keep_first=100_000, unprotected_beginning="Most prompts begin alike."))
    assert "Most prompts begin alike." in said
    assert any("to protect its first 100000" in one for one in said)
    assert not any("protect its first" in one or "begin alike" in one for one in limits(DATA))
