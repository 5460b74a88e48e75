"""What people look at: figures, and the report made of them."""

from dashboards.data import ReportData
from dashboards.figures import (
    comparison_figure,
    hypervolume_figure,
    pareto_figure,
    proposers_figure,
    schedule_heatmap,
    search_figure,
    training_figure,
)
from dashboards.report import ReportPaths, render_report, write_report
from dashboards.summary import summary_sentences

__all__ = [
    "ReportData",
    "ReportPaths",
    "comparison_figure",
    "hypervolume_figure",
    "pareto_figure",
    "proposers_figure",
    "render_report",
    "schedule_heatmap",
    "search_figure",
    "summary_sentences",
    "training_figure",
    "write_report",
]
