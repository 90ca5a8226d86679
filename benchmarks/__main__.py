"""Speed and memory of emulation as ratios to the clean model in the same run: `python -m benchmarks`.

Clean and emulated sessions take turns, so that a machine whose speed drifts slows both; the ratio of a pair is what
counts, its median over the pairs is what is printed. `--save` keeps the rows, `--check` compares with rows kept before.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import emu
from benchmarks.transformers import SHAPES, Shape, transformer
from emu.runtime.library import instruction_set

_EVERYTHING: dict[str, object] = {
    "read.weight_noise_model": "additive_constant",
    "read.weight_noise": 0.01,
    "write.model": "gauss_range",
    "write.sigma": 0.01,
}
# name, device, changes to the device, strength, most that is wanted of the ratio
CASES: list[tuple[str, str, dict[str, object], float, float]] = [
    ("strength 0", "rram_adc", {}, 0.0, 1.02),
    ("programmed weights (lognormal)", "rram", {}, 1.0, 1.05),
    ("DAC and ADC, 256 rows", "rram_adc", {"read.output_noise": 0, "program.model": "none"}, 1.0, 1.15),
    ("everything, 256 rows", "rram_adc", _EVERYTHING, 1.0, 1.35),
    ("everything, 128 rows", "rram_adc", {**_EVERYTHING, "mapping.tile_rows": 128}, 1.0, 1.6),
    ("everything, 64 rows", "rram_adc", {**_EVERYTHING, "mapping.tile_rows": 64}, 1.0, 2.2),
]
# name, device, changes: what a new chip costs
CHIPS: list[tuple[str, str, dict[str, object]]] = [
    ("lognormal", "rram", {}),
    ("PCM with drift, both devices of a pair", "pcm", {}),
    ("bit flips in Int8 codes, rate 1e-4", "int8_flips", {"faults.ber": 1e-4}),
]
_WORSE = 1.15  # a ratio so much above the one kept before fails a check


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def clean_session(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(shape: Shape, batch: int, threads: int, pairs: int) -> list[dict[str, Any]]:
    """Time every case for one shape, batch and number of threads."""
    model = transformer(shape)
    inputs = shape.inputs(batch)
    clean = clean_session(model.SerializeToString(), threads)
    rows = []
    for name, device, changes, strength, wanted in CASES:
        emulated = emu.rewrite(model, device=device, set=changes)
        session = emu.session(emulated, threads=threads)
        feeds = {**inputs, "emu.strength": np.full(len(emulated.manifest["sites"]), strength, np.float32)}

        def run_clean() -> object:
            return clean.run(None, inputs)

        def run_emulated(session=session, feeds=feeds) -> object:
            return session.run(None, feeds)

        run_emulated()
        run_clean()
        run_emulated()
        ratios, clean_times = [], []
        for _ in range(pairs):
            clean_time = seconds(run_clean)
            ratios.append(seconds(run_emulated) / clean_time)
            clean_times.append(clean_time)
        rows.append({
            "shape": shape.name, "batch": batch, "threads": threads, "case": name,
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios), "wanted": wanted,
            "clean_ms": 1e3 * statistics.median(clean_times),
        })  # fmt: skip
    return rows


def measure_chips(shape: Shape, threads: int, pairs: int) -> list[dict[str, Any]]:
    """Seconds that a new chip costs: a run with a new seed less a run with the same seed."""
    model = transformer(shape)
    inputs = shape.inputs(1)
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) / 1e6
    rows = []
    for name, device, changes in CHIPS:
        session = emu.session(emu.rewrite(model, device=device, set=changes), threads=threads)

        def run(seed: int, session=session) -> object:
            return session.run(None, {**inputs, "emu.seed": np.int64(seed)})

        run(0)
        costs = []
        for seed in range(1, pairs + 1):
            first = seconds(lambda seed=seed: run(seed))
            costs.append(first - seconds(lambda seed=seed: run(seed)))
        rows.append({
            "shape": shape.name, "threads": threads, "chip": name, "millions": weights,
            "seconds": statistics.median(costs), "low": min(costs), "high": max(costs),
        })  # fmt: skip
    return rows


def measure_session(shape: Shape, pairs: int) -> dict[str, Any]:
    """Ratio of the time to create a session."""
    model = transformer(shape)
    emulated = emu.rewrite(model, device="rram_adc").model
    clean_bytes, emulated_bytes = model.SerializeToString(), emulated.SerializeToString()
    ratios = []
    for _ in range(pairs):
        clean = seconds(lambda: clean_session(clean_bytes, 1))
        ratios.append(seconds(lambda: emu.session(emulated_bytes, threads=1)) / clean)
    return {"shape": shape.name, "session": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def peak_memory(shape: Shape, device: str | None) -> float:
    """Peak resident memory in MB of a process that loads a model from a file and runs one sample twice."""
    command = [sys.executable, "-m", "benchmarks.memory", shape.name, *([device] if device else [])]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def worse_than(rows: list[dict[str, Any]], kept: Path) -> list[str]:
    """Name the cases whose ratio is far above the one kept in a file."""
    keys = ("shape", "batch", "threads", "case")
    before = {tuple(row[key] for key in keys): row["ratio"] for row in json.loads(kept.read_text()) if "case" in row}
    found = []
    for row in rows:
        old = before.get(tuple(row.get(key) for key in keys))
        if old is not None and row["ratio"] > _WORSE * old:
            found.append(f"{row['shape']}, batch {row['batch']}, {row['case']}: {row['ratio']:.2f}, was {old:.2f}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["deit-small"], choices=sorted(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=7, help="clean and emulated runs in turn, per case")
    parser.add_argument("--chips", action="store_true", help="also time new chips, and creating sessions")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--save", type=Path, help="write the rows to this JSON file")
    parser.add_argument("--check", type=Path, help="fail if a ratio is 15 %% above the one in this file")
    arguments = parser.parse_args()

    print(f"{platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}, {instruction_set()}")
    print("all graph optimizations on, in both; ratio = emulated / clean, median of pairs (lowest to highest)")
    rows = []
    for name in arguments.shapes:
        for batch in arguments.batches:
            for threads in arguments.threads:
                measured = measure(SHAPES[name], batch, threads, arguments.pairs)
                rows += measured
                print(f"\n{name}, batch {batch}, {threads} thread(s), clean {measured[0]['clean_ms']:.1f} ms")
                for row in measured:
                    spread = f"({row['low']:.2f} to {row['high']:.2f}), wanted {row['wanted']:.2f}"
                    print(f"  {row['case']:34} {row['ratio']:5.2f}  {spread}", flush=True)
        if arguments.chips:
            for threads in arguments.threads:
                chips = measure_chips(SHAPES[name], threads, arguments.pairs)
                rows += chips
                print(f"\n{name}, {chips[0]['millions']:.0f} million weights, {threads} thread(s): a new chip")
                for row in chips:
                    print(f"  {row['chip']:40} {row['seconds']:6.3f} s  ({row['low']:.3f} to {row['high']:.3f})")
            session = measure_session(SHAPES[name], arguments.pairs)
            rows.append(session)
            print(f"  creating a session: {session['session']:.2f} ({session['low']:.2f} to {session['high']:.2f})")
        if arguments.memory:
            clean, *others = (peak_memory(SHAPES[name], device) for device in (None, "rram", "rram_adc"))
            rows.append({"shape": name, "clean_mb": clean, "rram_mb": others[0], "rram_adc_mb": others[1]})
            print(f"\n{name}: peak memory {clean:.0f} MB clean, {others[0]:.0f} rram, {others[1]:.0f} rram_adc")
    if arguments.save:
        arguments.save.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.check and (worse := worse_than(rows, arguments.check)):
        sys.exit("slower than before:\n  " + "\n  ".join(worse))


if __name__ == "__main__":
    main()
