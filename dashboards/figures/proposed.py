"""A figure of the proposers that shared a search: who got trials, and what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.figures.appearance import empty_figure, plain_text, proposer_colour, styled
from studies import ANCHOR, KNOCK_OUT, FrontVolume, Trial, TrialState, front_volume
from studies.records.objectives import DEFAULT_COST, KL, objective

_MOST_WINDOWS = 20
_FEWEST_TRIALS = 5
# The schedules that searches begin with are nobody's proposals.
_FIRSTS = (ANCHOR, KNOCK_OUT)


def proposers_figure(
    trials: Sequence[Trial], cost: str = DEFAULT_COST, measured: FrontVolume | None = None
) -> go.Figure:
    """Each proposer's share of the trials over time, and by how much its trials enlarged the front's hypervolume.

    Args:
        trials: The trials of a study.
        cost: Name of its second objective.
        measured: How its hypervolume is measured; None for how that follows from the trials alone.
    """
    title = "Who proposed"
    if not trials:
        return empty_figure(title, "No trial has ended yet.")
    size = max(_FEWEST_TRIALS, -(-len(trials) // _MOST_WINDOWS))
    windows = [trials[start : start + size] for start in range(0, len(trials), size)]
    gains = {
        name: objective(cost).shown(gain)
        for name, gain in _gains(trials, measured or front_volume((KL, cost), trials)).items()
    }
    credits = [
        Credit(
            name,
            [sum(trial.proposer == name for trial in window) / len(window) for window in windows],
            count,
            gains[name],
        )
        for name, count in Counter(trial.proposer for trial in trials).most_common()
    ]
    middles = [window[0].number + len(window) / 2 for window in windows]
    n_whole = sum(trial.state is TrialState.FINISHED for trial in trials)
    subtitle = f"{len(trials)} trials, {n_whole} of them evaluated to the end"
    return drawn_credits(credits, middles, [len(window) for window in windows], cost, title, subtitle)


@dataclass(frozen=True)
class Credit:
    """What a proposer did.

    Attributes:
        name: Its name.
        shares: Its share of the trials in each window.
        n_trials: Its trials.
        gain: By how much they enlarged the hypervolume, in the unit that people read.
    """

    name: str
    shares: Sequence[float]
    n_trials: int
    gain: float


def drawn_credits(
    credits: Sequence[Credit],
    middles: Sequence[float],
    widths: Sequence[float],
    cost: str,
    title: str,
    subtitle: str,
) -> go.Figure:
    """The figure of `proposers_figure`, from what was counted.

    Args:
        credits: Of each proposer, in the order of the legend.
        middles: Trial number in the middle of each window.
        widths: Trials of each window.
        cost: Name of the second objective.
        title: Of the figure.
        subtitle: Below it.
    """
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("Share of the trials", "Hypervolume gained"), horizontal_spacing=0.16
    )
    for one in credits:
        colour, shown = proposer_colour(one.name), plain_text(one.name)
        figure.add_bar(
            x=list(middles),
            y=[100 * share for share in one.shares],
            width=list(widths),
            name=shown,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"{shown}: %{{y:.0f}} %<extra></extra>",
            row=1,
            col=1,
        )
        if one.name in _FIRSTS:
            # Whatever comes first makes up most of the volume.
            continue
        figure.add_bar(
            x=[one.gain],
            y=[shown],
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"{shown}: %{{x:.4g}} in {one.n_trials} trials<extra></extra>",
            showlegend=False,
            row=1,
            col=2,
        )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(title="trial", row=1, col=1)
    figure.update_yaxes(title="% of the trials", range=[0, 100], row=1, col=1)
    figure.update_xaxes(title=volume_axis((KL, cost)), rangemode="tozero", row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    figure.update_annotations(font_size=13)
    return styled(figure, title, subtitle, height=400, panels=True)


def volume_axis(objectives: Sequence[str]) -> str:
    """The title of an axis of hypervolume, see `studies.front_volume`."""
    unit = objective(objectives[-1]).unit
    return f"hypervolume, log nats × {unit}" if objectives[0] == KL else "hypervolume"


def _gains(trials: Sequence[Trial], measured: FrontVolume | None) -> dict[str, float]:
    """By how much the trials of each proposer enlarged the hypervolume, added up."""
    gains = dict.fromkeys((trial.proposer for trial in trials), 0.0)
    if measured is None:
        return gains
    history = measured.history(trials)
    comparable = [trial for trial in trials if trial.is_comparable]
    for trial, after, before in zip(comparable, history, [0.0, *history], strict=False):
        gains[trial.proposer] += after - before
    return gains
