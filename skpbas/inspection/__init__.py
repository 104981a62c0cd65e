"""Looking at what a detector says: a report of many images in one file."""

from skpbas.inspection._report.summary import ReportSummary
from skpbas.inspection._report.writing import write_report

__all__ = ["ReportSummary", "write_report"]
