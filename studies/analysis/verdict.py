"""Says in one sentence what a study came to: whether it beats a shorter prompt, what it keeps, and how fast it is."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace

from studies.analysis.clock import check_clock
from studies.analysis.prefill_speed import prefill_speedup
from studies.analysis.retention import chance_level, chance_sentence, retention_of
from studies.analysis.shortened_prompt import (
    AgainstShortenedPrompt,
    measured_against_shortened_prompt,
    searched_against_shortened_prompt,
)
from studies.records.generation_speed import end_to_end, in_words
from studies.records.measurement import Measurement
from studies.records.records import ReportExamples, StudyRecord
from studies.records.study_facts import SelectionRecord, StudyFacts
from studies.records.target import Target
from studies.records.trial import Trial

# A point that has a name besides is rather taken under it.
_UNNAMED = "candidate"


@dataclass(frozen=True)
class NextStep:
    """Something to do with what a study found."""

    words: str  # its purpose
    command: str  # the command, on a command line or in Python


def selected_point(tested: Sequence[Measurement], selection: SelectionRecord | None) -> Measurement | None:
    """The selected point among the measurements of a split; None before one was selected or measured.

    Args:
        tested: Measurements of one split.
        selection: The trial and router that were selected (`StudyFacts.selection`).
    """
    if selection is None:
        return None
    wanted = (selection.trial, selection.router)
    matching = [m for m in tested if m.trial is not None and (m.trial, m.router) == wanted]
    return min(matching, key=lambda m: m.variant == _UNNAMED, default=None)


def against_shortened_prompt(
    study: StudyRecord,
    selected: Measurement | None,
    tested: Sequence[Measurement],
    examples: ReportExamples | None,
    trials: Sequence[Trial],
) -> AgainstShortenedPrompt | None:
    """The selected point beside a shortened prompt, or before it was measured the chosen trial; None if unknown.

    Args:
        study: The study.
        selected: The selected point.
        tested: Measurements on test items.
        examples: Single items of the test set.
        trials: Its trials; what is uniform among them, the dense one and the chosen one are enough.
    """
    if selected is not None:
        named, target = {m.variant: m for m in tested}, Target.of(study.config)
        found = measured_against_shortened_prompt(selected, named.get("uniform"), named.get("dense"), examples)
        is_timed = target is not None and target.kind == "target_speedup"
        return found if found is None or not is_timed else replace(found, equal="predicted time")
    selection = study.facts.selection
    chosen_trial = study.chosen_trial if selection is None else selection.trial
    chosen = next((trial for trial in trials if trial.number == chosen_trial), None)
    if chosen is None or study.objectives[:1] != ("kl",):
        return None
    return searched_against_shortened_prompt(chosen, trials)


def verdict_of(
    facts: StudyFacts,
    selected: Measurement | None,
    dense: Measurement | None,
    against: AgainstShortenedPrompt | None,
    examples: ReportExamples | None,
) -> str:
    """Says what a study came to, in one sentence, and in a second one where the dense model only guesses.

    Args:
        facts: Facts of the study.
        selected: The selected point as it was measured on test items; None before that.
        dense: The dense model, measured on the same.
        against: Comparison of it, or of the chosen trial, with a shortened prompt.
        examples: Single items of the test set.

    Returns:
        The same text for every place that shows it; empty where nothing is known yet.
    """
    if selected is None:
        return "" if against is None else f"Nothing has been measured yet. {against.sentence}"
    if not any(selected.schedule):
        return "The selected schedule skips nothing: it is the dense model, and nothing is gained or lost."
    chance = chance_level(facts, "test")
    guessed = chance_sentence(dense, chance)
    pace = _pace(selected, dense) + _end_to_end(facts, selected)
    clauses = [_worth(against), _kept(selected, dense, examples, chance), pace]
    said = [clause for clause in clauses if clause]
    sentence = f"The selected schedule {_joined(said)}."
    return f"{sentence} {guessed}" if guessed else sentence


def next_steps(
    study: StudyRecord,
    is_finished: bool,
    selected: Measurement | None,
    against: AgainstShortenedPrompt | None,
    n_trials: int,
) -> list[NextStep]:
    """Lists what to do with the results of a study, the most useful first.

    Args:
        study: The study.
        is_finished: True if its pipeline has come to its end.
        selected: The selected point; None before it was measured.
        against: Comparison of it with a shortened prompt.
        n_trials: Number of schedules that its first search evaluates.
    """
    name, exported = shlex.quote(study.name), study.facts.exported
    if not is_finished:
        return [NextStep("Go on", f"ftp-search resume {name}")]
    steps = []
    if exported is not None:
        steps.append(NextStep("Load it in Python", f"ftp_core.FTPForCausalLM.from_pretrained({exported!r})"))
    elif study.chosen_trial is not None:
        steps.append(NextStep("Write it as a model", f"ftp-search export {name} DIRECTORY"))
    skips_nothing = selected is not None and not any(selected.schedule)
    if skips_nothing or (against is not None and not against.is_better):
        steps.insert(0, NextStep("Search on", f"ftp-search resume {name} --trials {2 * n_trials}"))
    return steps


def _worth(against: AgainstShortenedPrompt | None) -> str:
    if against is None:
        return "was not compared with a shortened prompt"
    prompt = f"a prompt shortened by {against.shortened_by:.0%} at about the same {against.equal}"
    if against.is_one:
        return f"is no better than a prompt shortened by {against.shortened_by:.0%} (it is one)"
    known = f"KL {against.kl:.3g} against {against.shortened_kl:.3g} nats per token"
    if against.ratio_low is not None and against.shortened_kl > 0:
        ratio = against.kl / against.shortened_kl
        known = f"its KL is {ratio:.2g} [{against.ratio_low:.2g}, {against.ratio_high:.2g}] times as high"
    elif against.overlap:
        known += ", the intervals overlap"
    return f"is {'better' if against.is_better else 'no better'} than {prompt} ({known})"


def _kept(m: Measurement, dense: Measurement | None, examples: ReportExamples | None, chance: float | None) -> str:
    if dense is None:
        return ""
    kept = retention_of(m, dense, examples, chance)
    if kept is not None and kept.by == "accuracy":
        return f"keeps {kept.text} of the dense model's accuracy"
    return f"has a perplexity of {m.perplexity:.4g} against {dense.perplexity:.4g} of the dense model"


def _pace(m: Measurement, dense: Measurement | None) -> str:
    timed, faster = f"a prefill of {m.batch} × {m.length} tokens", prefill_speedup(m)
    clock = None if dense is None else check_clock([dense, m], m.split)
    unclear = ""
    if clock is not None and not clock.is_usable:
        unclear = ", which tells little, as the machine was too busy to be timed"
    elif faster.is_faster is False and faster.is_slower is False:
        unclear = ", which shows no difference"
    return f"runs {timed} at {faster.times} the dense model's speed{unclear}"


def _end_to_end(facts: StudyFacts, m: Measurement) -> str:
    """The end-to-end speed-up with the most new tokens that were timed; empty where none were."""
    left = in_words(end_to_end(facts.generation_speeds, m.trial, m.router)[-1:])
    return f", end to end {left}" if left else ""


def _joined(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])}, and {words[-1]}"
