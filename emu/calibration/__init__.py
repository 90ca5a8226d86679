"""Calibration: ranges of DACs and ADCs that fit the numbers that a model meets on data."""

from emu.calibration.calibration import calibrate

__all__ = ["calibrate"]
