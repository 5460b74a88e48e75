"""What people look at: figures, and the report made of them."""

from dashboards.analysis.records import ReportData
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
from dashboards.report.comparison import ComparisonPaths, write_comparison
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.report import ReportPaths, write_report
from dashboards.report.summary import summary_sentences

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
