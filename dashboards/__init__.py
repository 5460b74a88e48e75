"""What people look at: figures, the report, the pages of the service."""

from dashboards.analysis.records import ReportData
from dashboards.report.comparison import ComparisonPaths, write_comparison
from dashboards.report.html import render_report
from dashboards.report.markdown import render_markdown
from dashboards.report.report import ReportPaths, write_report
from dashboards.report.summary import summary_sentences

__all__ = [
    "ComparisonPaths",
    "ReportData",
    "ReportPaths",
    "render_markdown",
    "render_report",
    "summary_sentences",
    "write_comparison",
    "write_report",
]
