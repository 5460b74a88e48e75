"""Reports and comparisons of studies, their figures, and the pages of the service."""

from dashboards.analysis.records import ReportData
from dashboards.report.comparison import ComparisonPaths, write_comparison
from dashboards.report.report import ReportPaths, write_report

__all__ = ["ComparisonPaths", "ReportData", "ReportPaths", "write_comparison", "write_report"]


def __dir__() -> list[str]:
    return __all__
