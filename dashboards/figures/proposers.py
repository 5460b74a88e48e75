"""The figure of the proposers that shared a search: their trials, and the growth of the front by these."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from dashboards.analysis.axes import Floats
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import empty_figure, plain_text, proposer_colour, styled
from dashboards.figures.growth import volume_axis
from studies import TrialState
from studies.records.objectives import reference_text, shown_volume, volume_unit
from studies.records.trial import ABLATION, INITIAL_DESIGN
from studies.records.trial_columns import STATES

_MOST_WINDOWS = 24
_FEWEST_TRIALS = 5
# The schedules that searches begin with are nobody's proposals.
_FIRSTS = (INITIAL_DESIGN, ABLATION)


def proposers_figure(found: Found) -> go.Figure:
    """Draws each proposer's share of the trials over time, and the hypervolume that its trials added to the front.

    Args:
        found: Trials of the study.
    """
    title, columns, unit = "Who proposed", found.columns, volume_unit(found.objectives)
    if not len(found):
        return empty_figure(title, "No trial has ended yet.")
    n_windows = min(_MOST_WINDOWS, -(-len(found) // _FEWEST_TRIALS))
    edges = np.linspace(0, len(found), n_windows + 1).astype(int)
    middles, widths = (edges[:-1] + edges[1:]) / 2, np.diff(edges)
    totals = np.bincount(columns.proposer, minlength=len(columns.proposers))
    gains = _gains(found)
    figure = make_subplots(
        rows=1, cols=2, subplot_titles=("Share of the trials", "Hypervolume gained"), horizontal_spacing=0.16
    )
    for number in np.argsort(-totals, kind="stable").tolist():
        name = columns.proposers[number]
        colour, shown = proposer_colour(name), plain_text(name)
        shares = np.add.reduceat((columns.proposer == number).astype(float), edges[:-1]) / widths
        figure.add_bar(
            x=middles.tolist(),
            y=(100 * shares).tolist(),
            width=widths.tolist(),
            name=shown,
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate=f"{shown}: %{{y:.0f}} % of the trials<extra></extra>",
            row=1,
            col=1,
        )
        if name in _FIRSTS:
            # Whatever comes first makes up most of the volume.
            continue
        figure.add_bar(
            x=[float(gains[number])],
            y=[shown],
            orientation="h",
            marker={"color": colour},
            hovertemplate=f"{shown}: %{{x:.4g}} {unit} in {totals[number]} trials<extra></extra>",
            showlegend=False,
            row=1,
            col=2,
        )
    figure.update_layout(barmode="stack", bargap=0)
    figure.update_xaxes(title="trial", row=1, col=1)
    figure.update_yaxes(title="% of the trials", range=[0, 100], row=1, col=1)
    figure.update_xaxes(title=volume_axis(found.objectives), rangemode="tozero", row=1, col=2)
    figure.update_yaxes(autorange="reversed", row=1, col=2)
    figure.update_annotations(font_size=13)
    n_whole = int((columns.state == STATES.index(TrialState.FINISHED)).sum())
    subtitle = (
        f"{len(found)} trials, {n_whole} of them evaluated to the end<br>the initial design has no bar on the right"
    )
    if found.growth is not None:
        subtitle += f"<br>hypervolume up to {reference_text(found.growth.reference, found.objectives[:2])}"
    return styled(figure, title, subtitle, height=400, panels=True)


def _gains(found: Found) -> Floats:
    """[proposers] Hypervolume that the trials of each proposer added, in the unit that people read."""
    gains, growth = np.zeros(len(found.columns.proposers)), found.growth
    if growth is not None:
        added = [shown_volume(one, found.objectives) for one in np.diff(growth.volume, prepend=0.0).tolist()]
        np.add.at(gains, growth.proposer, added)
    return gains
