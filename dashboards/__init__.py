"""What people look at: figures, and the report made of them."""

from dashboards.figures import (
    comparison_figure,
    hypervolume_figure,
    pareto_figure,
    schedule_heatmap,
    search_figure,
    training_figure,
)
from dashboards.report import ReportData, render_report, write_report

__all__ = [
    "ReportData",
    "comparison_figure",
    "hypervolume_figure",
    "pareto_figure",
    "render_report",
    "schedule_heatmap",
    "search_figure",
    "training_figure",
    "write_report",
]
