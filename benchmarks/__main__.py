"""Speed of emulation as a ratio to the clean model in the same run: `python -m benchmarks`.

Clean and emulated sessions take turns, so that a machine whose speed drifts slows both; the ratio of a pair is what
counts, its median over the pairs is what is printed.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime

import emu
from benchmarks.transformers import SHAPES, Shape, vision_transformer
from emu.runtime.library import instruction_set

_EVERYTHING: dict[str, object] = {
    "read.weight_noise_model": "additive_constant",
    "read.weight_noise": 0.01,
    "write.model": "gauss_range",
    "write.sigma": 0.01,
}
# name, device, changes to the device, strength
CASES: list[tuple[str, str, dict[str, object], float]] = [
    ("strength 0", "rram_adc", {}, 0.0),
    ("programmed weights (lognormal)", "rram", {}, 1.0),
    ("DAC and ADC, 256 rows", "rram_adc", {"read.output_noise": 0, "program.model": "none"}, 1.0),
    ("everything, 256 rows", "rram_adc", _EVERYTHING, 1.0),
    ("everything, 128 rows", "rram_adc", {**_EVERYTHING, "mapping.tile_rows": 128}, 1.0),
    ("everything, 64 rows", "rram_adc", {**_EVERYTHING, "mapping.tile_rows": 64}, 1.0),
]


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def measure(shape: Shape, batch: int, threads: int, pairs: int) -> list[dict[str, object]]:
    """Time every case for one shape, batch and number of threads."""
    model = vision_transformer(shape)
    pixels = np.random.default_rng(0).standard_normal((batch, 3, shape.image, shape.image), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    clean = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    rows = []
    for name, device, changes, strength in CASES:
        emulated = emu.rewrite(model, device=device, set=changes)
        session = emu.session(emulated, threads=threads)
        strengths = np.full(len(emulated.manifest["sites"]), strength, np.float32)
        feeds = {"pixel_values": pixels, "emu.strength": strengths}

        def run_clean() -> object:
            return clean.run(None, {"pixel_values": pixels})

        def run_emulated(session=session, feeds=feeds) -> object:
            return session.run(None, feeds)

        programming = seconds(run_emulated)
        run_clean()
        run_emulated()
        ratios, clean_times = [], []
        for _ in range(pairs):
            clean_time = seconds(run_clean)
            ratios.append(seconds(run_emulated) / clean_time)
            clean_times.append(clean_time)
        rows.append({
            "shape": shape.name, "batch": batch, "threads": threads, "case": name,
            "ratio": statistics.median(ratios), "low": min(ratios), "high": max(ratios),
            "clean_ms": 1e3 * statistics.median(clean_times), "first_run_ms": 1e3 * programming,
        })  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shapes", nargs="+", default=["deit-small"], choices=sorted(SHAPES))
    parser.add_argument("--batches", nargs="+", type=int, default=[8])
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--pairs", type=int, default=7, help="clean and emulated runs in turn, per case")
    parser.add_argument("--json", help="also write the rows to this file")
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
                    print(f"  {row['case']:34} {row['ratio']:5.2f}  ({row['low']:.2f} to {row['high']:.2f})")
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
