"""Calibration: ranges of DACs and ADCs that fit the numbers that a model meets on data."""

from emu.calibration.calibration import calibrate, calibrated_sites

__all__ = ["calibrate", "calibrated_sites"]
