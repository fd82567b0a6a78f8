"""The report: everything that applies to some checkpoints, as one HTML page and one JSON file."""

from weightspace.report.page import Report, report

__all__ = ["Report", "report"]
