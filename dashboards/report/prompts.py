"""Prompts whose tokens are shaded by how many blocks they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import median
from typing import Any

from dashboards.analysis.tables import counted
from studies.records.records import ReportExamples, RoutedPrompt

# An answer without any words: a model may end a text that lacks its chat template at once.
_NOTHING = "(nothing: it ends the text here)"


@dataclass(frozen=True)
class ShadedToken:
    """A token as it is drawn."""

    text: str  # white space included
    blocks_run: int  # number of blocks that it runs
    shade: float  # from 0, the fewest blocks that any shown token runs, to 1, all of them


@dataclass(frozen=True)
class ShadedPrompt:
    """A prompt as it is drawn."""

    tokens: tuple[ShadedToken, ...]
    n_blocks: int
    said: str  # meaning of the shades, for readers who cannot see them
    expected: str
    dense: str  # answer of the dense model
    pruned: str  # answer of the selected model
    dense_right: bool | None  # whether the dense model's choice is the right one; None of what is written freely
    pruned_right: bool | None  # whether that of the selected model is


def own_prompt(found: Mapping[str, Any]) -> RoutedPrompt:
    """Somebody's own prompt as those of a report are: `tokens`, `blocks_run`, `n_blocks`, `dense` and `pruned`."""
    return RoutedPrompt(
        tokens=tuple(found["tokens"]),
        # Where halves skip apart, a piece runs halves of blocks.
        blocks_run=tuple(map(round, found["blocks_run"])),
        n_blocks=found["n_blocks"],
        expected="",
        dense=found["dense"] or _NOTHING,
        pruned=found["pruned"] or _NOTHING,
    )


def shaded_prompts(examples: ReportExamples | None) -> list[ShadedPrompt]:
    """Every prompt on one scale, from the fewest blocks that a token runs to all of them."""
    prompts = examples.prompts if examples else ()
    fewest = min((count for one in prompts for count in one.blocks_run), default=0)
    return [
        ShadedPrompt(
            tokens=tuple(
                ShadedToken(text, count, shade(count, fewest, one.n_blocks))
                for text, count in zip(one.tokens, one.blocks_run, strict=True)
            ),
            n_blocks=one.n_blocks,
            said=said(one),
            expected=one.expected,
            dense=one.dense,
            pruned=one.pruned,
            dense_right=one.dense_right,
            pruned_right=one.pruned_right,
        )
        for one in prompts
    ]


def judged(examples: ReportExamples | None) -> str:
    """How answers are marked, in a sentence; empty without any."""
    prompts = examples.prompts if examples else ()
    if not prompts:
        return ""
    choices = [one for one in prompts if one.dense_right is not None or one.pruned_right is not None]
    if not choices:
        return "Answers are written freely, and nobody judged them: none is marked."
    others = "" if len(choices) == len(prompts) else " Answers that are written freely are not judged."
    return f"Wrong choices are marked, of both models.{others}"


def legend(examples: ReportExamples | None) -> list[ShadedToken]:
    """A few counts between the fewest blocks that a token runs and all of them, with their shades."""
    prompts = examples.prompts if examples else ()
    counts = [count for one in prompts for count in one.blocks_run]
    if not counts:
        return []
    low, high = min(counts), max(one.n_blocks for one in prompts)
    steps = min(4, high - low)
    shown = dict.fromkeys(round(low + (high - low) * step / max(1, steps)) for step in range(steps + 1))
    return [ShadedToken(str(count), count, shade(count, low, high)) for count in shown]


def shade(count: int, fewest: int, n_blocks: int) -> float:
    """The place of a count between the fewest and all blocks, in [0, 1]."""
    return 1.0 if n_blocks <= fewest else round((count - fewest) / (n_blocks - fewest), 3)


def said(one: RoutedPrompt) -> str:
    """The blocks that the tokens of a prompt run, in a sentence."""
    counts = one.blocks_run
    if not counts:
        return "The prompt has no tokens."
    whole, n = sum(count == one.n_blocks for count in counts), len(counts)
    return (
        f"{whole} of {counted(n, 'token')} run all {one.n_blocks} blocks; the median is {median(counts):g}, the fewest "
        f"are {min(counts)}, which makes {1 - sum(counts) / (n * one.n_blocks):.1%} of the work on blocks that is not "
        "done."
    )


def as_text(one: RoutedPrompt) -> str:
    """The prompt with, before each stretch of tokens, how many blocks these run: `[12]Tom [5] has the`."""
    pairs: Sequence[tuple[str, int]] = list(zip(one.tokens, one.blocks_run, strict=True))
    stretches = groupby(pairs, key=lambda pair: pair[1])
    return "".join(f"[{count}]{''.join(text for text, _ in stretch)}" for count, stretch in stretches)
