"""Peak resident memory of one process: `python -m benchmarks.memory SHAPE [DEVICE]` prints MB.

The model is made by another process, so that only loading and running it count.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import onnxruntime

import emu
from benchmarks.transformers import SHAPES

_MAKE = """
import sys, onnx, emu
from benchmarks.transformers import SHAPES, transformer
model = transformer(SHAPES[sys.argv[1]])
if len(sys.argv) > 3:
    model = emu.rewrite(model, device=sys.argv[3], only="*").model
onnx.save(model, sys.argv[2])
"""


def main() -> None:
    shape, device = SHAPES[sys.argv[1]], sys.argv[2:3]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        subprocess.run([sys.executable, "-c", _MAKE, shape.name, str(path), *device], check=True)
        if device:
            session = emu.session(path, threads=1)
        else:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for _ in range(2):
            session.run(None, shape.inputs(1))
    # Not getrusage: its maximum begins with what the parent process held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) / 1024)


if __name__ == "__main__":
    main()
