"""Pictures of a study: pure functions from what was remembered to Plotly figures."""

from dashboards.figures.appearance import PROPOSER_COLOURS, VARIANT_COLOURS, proposer_colour
from dashboards.figures.compared import comparison_figure, groups_figure
from dashboards.figures.measured import pareto_figure
from dashboards.figures.proposed import proposers_figure
from dashboards.figures.searched import hypervolume_figure, schedule_heatmap, search_figure
from dashboards.figures.trained import training_figure

__all__ = [
    "PROPOSER_COLOURS",
    "VARIANT_COLOURS",
    "comparison_figure",
    "groups_figure",
    "hypervolume_figure",
    "pareto_figure",
    "proposer_colour",
    "proposers_figure",
    "schedule_heatmap",
    "search_figure",
    "training_figure",
]
