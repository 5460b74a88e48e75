"""The figure that lays the fronts of several studies over each other."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import plotly.graph_objects as go

from dashboards.analysis.axes import Axis
from dashboards.analysis.trials import Found
from dashboards.figures.appearance import LogScale, empty_figure, plain_text, styled
from dashboards.figures.front import FRONT_PX
from dashboards.figures.trial_points import better, lower_symbols, points, set_titles, stairs, templates, title_of

# Of the palette of variants and proposers, with another mark for each study.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#A85585", "#C38700", "#00789C", "#882255", "#747427")
_SYMBOLS = ("circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star")


def fronts_figure(studies: Mapping[str, Found], x: str, y: str) -> go.Figure:
    """Draws the fronts of several studies against two quantities.

    Args:
        studies: Trials of each study, by name.
        x: Name of the quantity across.
        y: Name of the quantity upwards.
    """
    across, upwards = Axis(x), Axis(y)
    title = title_of(across, upwards)
    known = {name: found for name, found in studies.items() if len(found.drawable(x, y))}
    if not known:
        return empty_figure(title, "Choose studies whose trials know both of these.")
    heights = np.concatenate([found.values(y)[found.front(x, y)] for found in known.values()])
    scale = LogScale.of(heights) if y == "kl" else None
    figure = go.Figure()
    for place, (name, found) in enumerate(known.items()):
        front = found.front(x, y)
        colour, symbol = COLOURS[place % len(COLOURS)], _SYMBOLS[_symbol_of(place)]
        figure.add_scatter(
            **points(found, front, across, upwards, scale),
            mode="lines+markers",
            name=plain_text(name),
            line={"color": colour, "width": 1.5, "shape": stairs(across)},
            marker={"color": colour, "size": 8, "symbol": lower_symbols(found, front, upwards, scale, symbol)},
            customdata=found.columns.number[front].tolist(),
            hovertemplate=templates(found, front, across, upwards, plain_text(name), scale),
        )
    set_titles(figure, across, upwards)
    if scale is not None:
        figure.update_yaxes(**scale.axis())
        scale.mark(figure)
    missing = [plain_text(name) for name in studies if name not in known]
    subtitle = f"Each front is of what its study searched on<br>{better(across, upwards)}"
    subtitle += f"<br>{scale.note}" if scale is not None and scale.note else ""
    subtitle += f"<br>left out, since no trial knows both: {', '.join(missing)}" if missing else ""
    return styled(figure, title, subtitle, height=FRONT_PX).update_layout(margin_b=110, uirevision=f"{x} {y}")


def _symbol_of(place: int) -> int:
    """Which mark a study has: studies of the same colour have different ones."""
    return (place + place // len(COLOURS)) % len(_SYMBOLS)
