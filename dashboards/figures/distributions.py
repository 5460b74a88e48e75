"""The figure of how a quantity is distributed over the trials of several studies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Axis
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import LogScale, empty_figure, plain_text, styled
from dashboards.figures.fronts import COLOURS

# Of studies of the same colour.
_DASHES = ("solid", "dash", "dot")
# Most points of a line, which are more than a screen shows.
_MOST_POINTS = 500


def distributions_figure(studies: Mapping[str, Found], name: str) -> go.Figure:
    """Draws the empirical distribution function of a quantity over the comparable trials of several studies.

    Args:
        studies: Trials of each study, by name.
        name: Name of the quantity.
    """
    axis = Axis(name)
    title = f"Trials by {axis.title}"
    values = {study: np.sort(axis.shown(found.values(name)[found.comparable])) for study, found in studies.items()}
    # What is not a number has been sorted to the end.
    known = {study: own for study, all_ in values.items() if len(own := all_[np.isfinite(all_)])}
    if not known:
        return empty_figure(title, "Choose studies whose trials know this.")
    scale = LogScale.of(np.concatenate(list(known.values()))) if name == "kl" else None
    figure = go.Figure()
    for place, study in enumerate(studies):
        if study not in known:
            continue
        own = known[study]
        # Upper ends of ties, so that each value has the share of all that are as low.
        at = np.unique(np.linspace(0, len(own) - 1, min(len(own), _MOST_POINTS)).astype(int))
        shares = np.searchsorted(own, own[at], side="right") / len(own)
        shown = np.ones(len(at), dtype=bool) if scale is None else ~scale.lower(own[at])
        figure.add_scatter(
            x=own[at][shown].tolist(),
            y=shares[shown].tolist(),
            mode="lines",
            name=plain_text(study),
            line={
                "color": COLOURS[place % len(COLOURS)],
                "width": 2,
                "shape": "hv",
                "dash": _DASHES[place // len(COLOURS) % len(_DASHES)],
            },
            hovertemplate=f"<b>{plain_text(study)}</b><br>%{{y:.1%}} of {len(own)} trials: at most "
            f"%{{x:{'.1%' if axis.is_share else '.4g'}}} {axis.unit}".rstrip()
            + "<extra></extra>",
        )
    figure.update_xaxes(title=axis.heading, **({"tickformat": ".0%"} if axis.is_share else {}))
    if scale is not None:
        figure.update_xaxes(**scale.axis())
    figure.update_yaxes(title="share of the trials", tickformat=".0%", range=[0, 1.02])
    better = "right and lower" if axis.higher_is_better else "left and higher"
    subtitle = f"Empirical distribution over comparable trials; further {better} is better"
    subtitle += "<br>trials below the axis count, and are not drawn" if scale is not None and scale.has_lower else ""
    return styled(figure, title, subtitle, height=400).update_layout(margin_b=110, uirevision=name)
