"""The command line: parses, calls the package, prints. Anything that it does, three lines of Python do too.

Heavy packages (numpy, onnx, onnxruntime, pydantic, pandas) are imported by the commands that need them: help is quick.
"""

# In the order in which help lists them.
# isort: off
from emu.cli.app import app
from emu.cli import devices as devices
from emu.cli import fit as fit
from emu.cli import export as export
from emu.cli import finetune as finetune
from emu.cli import models as models
from emu.cli import baking as baking
from emu.cli import evaluation as evaluation
from emu.cli import sweep as sweep
from emu.cli import report as report
from emu.cli import analyze as analyze
from emu.cli import analyze_signals as analyze_signals
from emu.cli import corruptions as corruptions
from emu.cli import installation as installation
# isort: on

__all__ = ["app", "main"]


def main() -> None:
    """Runs the command line."""
    app(prog_name="emu")
