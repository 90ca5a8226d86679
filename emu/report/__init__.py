"""A store of trials as one HTML page that needs nothing else: tables, figures, and the commands that repeat it."""

from emu.report.page import report_page, write_report

__all__ = ["report_page", "write_report"]
