"""Sentences on the best trials of each search by fresh items."""

from __future__ import annotations

from studies.records.study_facts import Confirmation, StudyFacts


def confirmation_sentences(facts: StudyFacts) -> list[str]:
    """A sentence or a few on each search whose trials were confirmed, or were not, and why."""
    several = len(facts.confirmations) > 1
    return [f"{_title(one)}: {_sentence(one)}" if several else _sentence(one) for one in facts.confirmations]


def _title(one: Confirmation) -> str:
    return f"Round {one.round}" if one.round else "First search"


def _sentence(one: Confirmation) -> str:
    if one.said:
        return one.said
    apart = "none is" if not one.told_apart else "one is" if one.told_apart == 1 else f"{one.told_apart} are"
    said = (
        f"{one.trials} trials were confirmed on up to {one.items} calibration items that the search had not seen; "
        f"{apart} told apart from a better one."
    )
    if one.optimism is not None:
        said += f" Their KL there is {abs(one.optimism):.0%} {'higher' if one.optimism >= 0 else 'lower'} than on the "
        said += "search set, by which they were found."
    if one.best is not None and one.best == one.best_before:
        said += f" Trial {one.best} stays the best."
    elif one.best is not None:
        said += f" Trial {one.best} is the best now; by the search set it was trial {one.best_before}."
    return said
