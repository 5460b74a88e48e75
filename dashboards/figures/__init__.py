"""Plotly figures, which the report, the pages and notebooks share."""

from dashboards.figures.appearance import PROPOSER_COLOURS, VARIANT_COLOURS, proposer_colour
from dashboards.figures.comparison import comparison_figure
from dashboards.figures.distributions import distributions_figure
from dashboards.figures.front import front_figure
from dashboards.figures.fronts import fronts_figure
from dashboards.figures.groups import groups_figure
from dashboards.figures.growth import growth_figure
from dashboards.figures.measurements import measurements_figure
from dashboards.figures.proposers import proposers_figure
from dashboards.figures.routers import training_figure
from dashboards.figures.schedules import parallel_figure, schedule_figure, schedules_figure, selected_schedules_figure
from dashboards.figures.sensitivities import sensitivities_figure
from dashboards.figures.slices import slices_figure
from dashboards.figures.workers import workers_figure

__all__ = [
    "PROPOSER_COLOURS",
    "VARIANT_COLOURS",
    "comparison_figure",
    "distributions_figure",
    "front_figure",
    "fronts_figure",
    "groups_figure",
    "growth_figure",
    "measurements_figure",
    "parallel_figure",
    "proposer_colour",
    "proposers_figure",
    "schedule_figure",
    "schedules_figure",
    "selected_schedules_figure",
    "sensitivities_figure",
    "slices_figure",
    "training_figure",
    "workers_figure",
]
