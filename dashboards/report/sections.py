"""The figures of a report, each with the paragraph that says how to read it."""

from __future__ import annotations

from dataclasses import dataclass

import plotly.graph_objects as go

from dashboards.analysis.growth import more_trials
from dashboards.analysis.records import VARIANT_TITLES, ReportData
from dashboards.figures import (
    comparison_figure,
    front_figure,
    groups_figure,
    growth_figure,
    measurements_figure,
    proposers_figure,
    schedules_figure,
    training_figure,
)
from studies.analysis.confirmation import confirmation_sentences

_WAYS = {
    "uniform": "evenly over the blocks (uniform)",
    "static": "as the search allocates it (static: a prompt keeps its first token and its most recent ones)",
    "dynamic": "on the same schedule with the trained router choosing the tokens (dynamic)",
    "refined": "on a schedule that was searched with that router (refined; with the static one where training found "
    "none that is better)",
}


_OTHERS = (
    " Other methods, a mark for each, ran the same items; on an axis of latency they stand by their speed-up, measured "
    "in turns with the dense model. A click on a name in the legend hides or shows it."
)


@dataclass(frozen=True)
class Section:
    """A figure with how to read it."""

    title: str  # empty for one that goes on with the section before
    reading: str  # meaning of the figure, in sentences
    figure: go.Figure
    wide: bool = False  # has panels side by side, which a phone has to scroll


def measured_sections(data: ReportData) -> list[Section]:
    """Figures of the results, in the order in which questions arise: what it costs, and who decides."""
    if not data.results:
        return []
    return [
        Section(
            "What a choice costs",
            "Each point is a schedule with a router, run for real on data that neither search nor training nor "
            "selection saw. Further left is cheaper; the line joins the non-dominated points, dominated ones are "
            "hollow: another is as good in both and better in one. Whiskers show the quartiles of what was timed and "
            "the 95% interval of quality: points whose whiskers overlap are hardly told apart by this many items."
            + (_OTHERS if any(one.model is not None for one in data.compared) else ""),
            measurements_figure(data.results, data.selected, data.cost.name, data.titles, data.chance, data.compared),
        ),
        Section(
            "Who decides which tokens skip",
            f"A budget of skipped tokens, spent {_spent(data)}.{_not_searched(data)}",
            comparison_figure(data.results, data.selected, data.titles, data.chance),
            wide=True,
        ),
    ]


def _spent(data: ReportData) -> str:
    """The ways to spend a budget of skipped tokens that were measured."""
    ways = [words for variant, words in _WAYS.items() if data.measured(variant) is not None]
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, and {ways[-1]}" if ways else "in no way"


def _not_searched(data: ReportData) -> str:
    """The rows that no search has found, in a sentence; empty where one has found all."""
    others = [title for variant, title in data.titles.items() if title != VARIANT_TITLES[variant]]
    return f" Here no search has found what is shown as {'; nor as '.join(others)}." if others else ""


def group_section(data: ReportData) -> Section | None:
    """The figure of accuracy by group; None where the data has no groups."""
    if data.examples is None or not data.examples.groups:
        return None
    selected = data.selected
    return Section(
        "Where accuracy is lost",
        "Accuracy on the test items of each group, such as those with the same distance between question and answer. "
        "Groups are small, so whiskers are long: a difference within them shows nothing.",
        groups_figure(data.examples.groups, None if selected is None else selected.variant, data.titles),
        wide=True,
    )


def search_sections(data: ReportData) -> list[Section]:
    """Figures of the search: where it skips, what was tried, whether more would help, and who found it."""
    found, chosen = data.found, data.chosen_trial
    front = found.columns.number[found.front()]
    sections = []
    if len(front):
        apart = chosen in found.columns.number and chosen not in front
        sections.append(
            Section(
                "Which blocks can do without",
                "A row is a schedule of the front, with little skipped at the bottom and much at the top. Dark blocks "
                "are skipped by most tokens; blocks that stay light even at the top are those that the model cannot "
                f"spare.{_what_skips(data)}"
                + (" The selected schedule is not on the front of the items searched on." if apart else ""),
                schedules_figure(found, chosen),
            )
        )
    if data.trials:
        sections += [
            Section(
                "What was tried",
                "Every schedule that was evaluated to the end, with its KL on calibration data and its "
                f"{data.cost.title}{data.prefill}; lower is better in both. The staircase joins the front, the "
                "non-dominated schedules: none is as good in both and better in one."
                + "".join(f" {sentence}" for sentence in confirmation_sentences(data.study.facts)),
                front_figure(found, selected=chosen, standalone=True),
            ),
            Section(
                "Whether more trials would help",
                "The area between the front and a corner: a KL of 1 nat, where models are ruined, at the dense model's "
                f"cost; KL counts as its logarithm. {more_trials(data)}",
                growth_figure(found),
            ),
            Section(
                "Who found it",
                "Several proposers share a search and learn from each other's results. Left, who got the trials: most "
                "go to those that have lately made the front grow fastest, and nobody starves. Right, what their "
                "trials added to what the initial design, dense and uniform schedules, had reached.",
                proposers_figure(found),
                wide=True,
            ),
        ]
    return sections


def _what_skips(data: ReportData) -> str:
    """A sentence on what a schedule's numbers are of, where these are not whole blocks that drop keys and values."""
    config = data.study.config
    fitted = ", fitted to what the dense model has there" if config.get("keys") == "fitted" else ""
    is_half, keeps_kv = config.get("granularity") == "half", config.get("kv") == "keep"
    parts = [
        *(["attention and MLP of a block skip apart"] if is_half else []),
        *([f"skipped tokens leave keys and values{fitted}"] if keeps_kv else []),
    ]
    if parts and (rank := config.get("substitute")):
        parts.append(f"low-rank maps (rank {rank}) stand in for what they skip")
    return f" Here {'; '.join(parts)}." if parts else ""


def _kept_router(data: ReportData) -> str:
    """The router of the selected point, in a sentence; empty before the selection."""
    if data.selection is None:
        return ""
    if data.selection.router is None:
        return " The selected point keeps none of them: the static router decides there."
    return f" The selected point keeps router {data.selection.router}."


def training_sections(data: ReportData) -> list[Section]:
    """The training curves of every router, oldest first."""
    reading = (
        "Left, the losses on training batches: the total, and its parts before they are weighted. Right, KL on "
        "validation items, on which it never trained; the state with the lowest one is that router."
        f"{_kept_router(data)}"
    )
    return [
        Section(
            "" if number else "How the router learned",
            "" if number else reading,
            training_figure(run, data.selection),
            wide=True,
        )
        for number, run in enumerate(data.router_runs)
    ]
