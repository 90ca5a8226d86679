"""Analyses: where a model is vulnerable, what it tolerates, and what its protection costs."""

from emu.errors import InputError

try:
    import pandas as pandas
except ImportError:
    raise InputError('This needs pandas: pip install "emu-onnx[analysis]".') from None
