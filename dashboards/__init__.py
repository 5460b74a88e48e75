"""What people look at: figures, and the report made of them."""

from dashboards.comparison import ComparisonPaths, write_comparison
from dashboards.data import ReportData
from dashboards.figures import (
    comparison_figure,
    groups_figure,
    hypervolume_figure,
    pareto_figure,
    proposers_figure,
    schedule_heatmap,
    search_figure,
    training_figure,
)
from dashboards.markdown import render_markdown
from dashboards.page import render_report
from dashboards.report import ReportPaths, write_report
from dashboards.summary import summary_sentences

__all__ = [
    "ComparisonPaths",
    "ReportData",
    "ReportPaths",
    "comparison_figure",
    "groups_figure",
    "hypervolume_figure",
    "pareto_figure",
    "proposers_figure",
    "render_markdown",
    "render_report",
    "schedule_heatmap",
    "search_figure",
    "summary_sentences",
    "training_figure",
    "write_comparison",
    "write_report",
]
