"""Time and peak memory of `emu rewrite` and `emu inspect` on large models: `python -m benchmarks.size FOLDER`.

Models with random weights are written to FOLDER (up to 6 GB with the rewritten ones). Each command runs as its own
process; peak memory is that process's largest resident set (Linux only).
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import onnx

from benchmarks.transformers import SHAPES, transformer

# name, shape, whether weights go to a file of their own (needed above 2 GB)
MODELS = [("deit-small", False), ("vit-large", False), ("vit-large", True), ("vit-huge", True)]


def write_model(name: str, external: bool, folder: Path) -> Path:
    """Write a model with random weights, unless it is there already."""
    path = folder / f"{name}{'-external' if external else ''}.onnx"
    if not path.exists():
        model = transformer(SHAPES[name])
        onnx.save(model, path, save_as_external_data=external, location=f"{path.name}.data")
    return path


def size_of(path: Path) -> int:
    """Bytes of a model with its external data."""
    return sum(each.stat().st_size for each in (path, path.with_name(f"{path.name}.data")) if each.exists())


MEASURED = """
import sys, time
start = time.perf_counter()
from emu.cli import main
sys.argv = sys.argv[1:]
try:
    main()
except SystemExit as end:
    code = end.code
finally:
    # Not getrusage: its maximum counts the parent before the child's program was loaded.
    peak = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
    print(f"{time.perf_counter() - start} {peak}", file=sys.stderr)
    sys.exit(code)
"""


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and peak MB of one `emu` command."""
    process = subprocess.run([sys.executable, "-c", MEASURED, "emu", *arguments], capture_output=True, text=True)
    if process.returncode != 0:
        raise SystemExit(process.stderr)
    seconds, peak = process.stderr.split()[-2:]
    return float(seconds), float(peak)


def main() -> None:
    """Measure every model and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.size", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{os.cpu_count()} processors")
    print(
        f"{'model':22} {'size MB':>8} {'inspect s':>10} {'peak MB':>8} {'rewrite s':>10} {'peak MB':>8} {'disk s':>7}"
    )
    for name, external in MODELS:
        path = write_model(name, external, folder)
        inspecting = measure(["inspect", str(path)])
        target = folder / f"{path.stem}.rram.onnx"
        rewriting = measure(["rewrite", str(path), "--device", "rram", "-o", str(target), "--overwrite"])
        start = time.perf_counter()  # what writing so many bytes costs here, for comparison
        with (folder / "bytes").open("wb") as file:
            for _ in range(size_of(path) >> 24):
                file.write(bytes(1 << 24))
        disk = time.perf_counter() - start
        (folder / "bytes").unlink()
        megabytes = size_of(path) / 2**20
        label = path.stem
        print(
            f"{label:22} {megabytes:8.0f} {inspecting[0]:10.1f} {inspecting[1]:8.0f} "
            f"{rewriting[0]:10.1f} {rewriting[1]:8.0f} {disk:7.1f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
