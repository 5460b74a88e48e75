"""Single items of the test set for the report: routed prompts, accuracy by group, and disagreements."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from ftp_core.quality.intervals import bootstrap_interval, wilson_interval
from ftp_core.quality.quality import ItemQuality
from ftp_core.routers import Router
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample, length_order
from search.errors import SearchError
from search.stages.candidates import evenly_spread
from search.stages.completions import blocks_run, first_words, greedy_answers, prompt_text, text_of
from studies.records.records import Disagreement, GroupAccuracy, ReportExamples, RoutedPrompt

_DENSE = "dense"
_N_PROMPTS = 4
# What the dense and the selected variant answer, and the texts of some answers.
N_STEPS = 4
# Prompts of more tokens are shown only if there are not enough others: nobody reads them.
_LONGEST_SHOWN = 512
# With fewer groups, prompts are picked by length alone.
_ENOUGH_GROUPS = 3
_N_DISAGREEMENTS = 10
# Equal distributions have a KL that differs from 0 by less.
_ROUNDING = 1e-6

# What is answered, and whether it is right; None of an item that is not counted.
_Answer = tuple[int, bool] | None


def collect_examples(
    model: SkippingModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[EncodedExample],
    variants: Mapping[str, tuple[SparsitySchedule, Router]],
    items: Mapping[str, Sequence[ItemQuality]],
    selected: str,
    on_step: Callable[[], None] = lambda: None,
) -> ReportExamples:
    """Looks at the items of the test set one by one, in `N_STEPS` steps, given the quality of each variant on each.

    Multiple-choice items are answered with the likeliest choice, and where there are some, they alone are counted as
    answered differently, lost or won. In data without any, every item counts: its answer is then the likeliest token in
    place of the first one of the right answer that is more than white space, and its greedy continuation is shown.
    Prompts and disagreements are drawn with the selected variant, beside the dense one, which must not be missing.
    """
    for name in (_DENSE, selected):
        if name not in variants:
            raise SearchError(f"There is no variant {name!r}, only {', '.join(map(repr, variants))}: give it, too.")
    looks = [_Look(model, tokenizer, examples, *variants[name], items[name], on_step) for name in (_DENSE, selected)]
    answers = list(zip(*(look.answers() for look in looks), strict=True))
    counted = [(dense, pruned) for dense, pruned in answers if dense is not None and pruned is not None]
    different = [dense != pruned for dense, pruned in answers]
    prompts, worst = _to_show(examples), _worst(items[selected], different)
    dense_texts, texts = (look.texts([*prompts, *worst]) for look in looks)
    return ReportExamples(
        prompts=tuple(
            looks[1].routed_prompt(place, dense_texts[place], texts[place], items[_DENSE][place].right)
            for place in prompts
        ),
        groups=_accuracy_by_group(examples, items),
        disagreements=tuple(looks[1].disagreement(place, dense_texts[place], texts[place]) for place in worst),
        n_disagreements=sum(different),
        n_lost=sum(dense[1] and not pruned[1] for dense, pruned in counted),
        n_won=sum(pruned[1] and not dense[1] for dense, pruned in counted),
        n_items=len(counted),
        kl_ratios=_kl_ratios(items, selected),
    )


def _kl_ratios(items: Mapping[str, Sequence[ItemQuality]], selected: str) -> dict[str, tuple[float, float]]:
    """The interval of the selected variant's KL as a share of every other one's, drawn item by item."""
    sums = {name: torch.tensor([one.kl * one.n_tokens for one in own]) for name, own in items.items()}
    others = [name for name in sums if name not in (_DENSE, selected)]
    ratios = {name: bootstrap_interval(sums[selected], sums[name]) for name in others}
    # Items without any KL have no ratio.
    return {name: ends for name, ends in ratios.items() if all(map(math.isfinite, ends))}


@dataclass(frozen=True)
class _Look:
    """One variant, looked at item by item."""

    model: SkippingModel
    tokenizer: PreTrainedTokenizerBase
    examples: Sequence[EncodedExample]
    schedule: SparsitySchedule
    router: Router
    items: Sequence[ItemQuality]
    on_step: Callable[[], None]

    def answers(self) -> list[_Answer]:
        """Answers to each item; None where it does not count."""
        found: list[_Answer] = [None if item.choice is None else (item.choice, bool(item.right)) for item in self.items]
        if not any(example.has_choices for example in self.examples):
            found = [*first_words(self.model, self.tokenizer, self.examples, self.schedule, self.router)]
        self.on_step()
        return found

    def texts(self, places: Iterable[int]) -> dict[int, str]:
        """Answers to some items, as text."""
        shown = sorted(set(places))
        free = [place for place in shown if not self.examples[place].has_choices]
        written = greedy_answers(
            self.model, self.tokenizer, [self.examples[place] for place in free], self.schedule, self.router
        )
        chosen = {
            place: self._text(self.examples[place], choice)
            for place in shown
            if (choice := self.items[place].choice) is not None
        }
        self.on_step()
        return chosen | dict(zip(free, written, strict=True))

    def routed_prompt(self, place: int, dense: str, pruned: str, dense_right: bool | None) -> RoutedPrompt:
        """A prompt with the blocks that each of its tokens runs; of tokens that share a character, on average."""
        example = self.examples[place]
        pieces = blocks_run(self.model, self.tokenizer, example, self.schedule, self.router)
        return RoutedPrompt(
            tokens=tuple(text for text, _ in pieces),
            blocks_run=tuple(round(count) for _, count in pieces),
            n_blocks=self.model.n_blocks,
            expected=self._expected(example),
            dense=dense,
            pruned=pruned,
            dense_right=dense_right,
            pruned_right=self.items[place].right,
        )

    def disagreement(self, place: int, dense: str, pruned: str) -> Disagreement:
        """An item on which it and the dense model differ."""
        example = self.examples[place]
        return Disagreement(
            prompt=prompt_text(self.tokenizer, example.prompt),
            expected=self._expected(example),
            dense=dense,
            pruned=pruned,
            kl=self.items[place].kl,
            group=example.group,
        )

    def _expected(self, example: EncodedExample) -> str:
        return self._text(example, example.answer)

    def _text(self, example: EncodedExample, choice: int) -> str:
        return text_of(self.tokenizer, example.prompt, example.continuations[choice])


def _worst(items: Sequence[ItemQuality], different: Sequence[bool]) -> list[int]:
    """Places of the items that differ most from the dense model: those answered differently first, then by KL."""
    places = [place for place, item in enumerate(items) if different[place] or item.kl > _ROUNDING]
    return sorted(places, key=lambda place: (not different[place], -items[place].kl, place))[:_N_DISAGREEMENTS]


def _accuracy_by_group(
    examples: Sequence[EncodedExample], items: Mapping[str, Sequence[ItemQuality]]
) -> tuple[GroupAccuracy, ...]:
    """Accuracy of each variant on the multiple-choice items of each group."""
    groups = _by_group(examples, [place for place, example in enumerate(examples) if example.has_choices])
    found = []
    for group in sorted(groups, key=_natural):
        places = groups[group]
        right = {name: sum(bool(of_variant[place].right) for place in places) for name, of_variant in items.items()}
        found.append(
            GroupAccuracy(
                group=group,
                n_items=len(places),
                accuracy={name: count / len(places) for name, count in right.items()},
                interval={name: wilson_interval(count, len(places)) for name, count in right.items()},
            )
        )
    return tuple(found)


def _by_group(examples: Sequence[EncodedExample], places: Iterable[int]) -> dict[str, list[int]]:
    """Places of examples by their groups, as far as they have one."""
    groups: dict[str, list[int]] = {}
    for place in places:
        if (group := examples[place].group) is not None:
            groups.setdefault(group, []).append(place)
    return groups


def _natural(group: str) -> tuple[list[tuple[int, str]], str]:
    """Sort key by which "distance 3-5" comes before "distance 10-12"."""
    parts = re.split(r"(\d+)", group)
    # Every other part is a number: of two, the one with more digits is the larger one.
    numbers = [part.lstrip("0") if place % 2 else part for place, part in enumerate(parts)]
    return [(len(part) if place % 2 else 0, part) for place, part in enumerate(numbers)], group


def _to_show(examples: Sequence[EncodedExample]) -> list[int]:
    """Places of a few items of different groups, as far as there are some, and of different lengths."""
    by_length = length_order(examples)
    short = [place for place in by_length if len(examples[place].prompt) <= _LONGEST_SHOWN]
    by_length = short if len(short) >= _N_PROMPTS else by_length[:_N_PROMPTS]
    groups = _by_group(examples, by_length)
    if len(groups) < _ENOUGH_GROUPS:
        return evenly_spread(by_length, _N_PROMPTS)
    picked = evenly_spread(sorted(groups, key=_natural), _N_PROMPTS)
    # A short one of the first group, a long one of the last.
    return [groups[name][(2 * rank + 1) * len(groups[name]) // (2 * len(picked))] for rank, name in enumerate(picked)]
