"""Calibration: ranges of DACs and ADCs that fit the numbers that a model meets on data, and files of ranges."""

from emu.calibration.calibration import calibrate
from emu.calibration.files import export_ranges, import_ranges, ranges_by_site

__all__ = ["calibrate", "export_ranges", "import_ranges", "ranges_by_site"]
