"""Emulated and clean sessions in turns: the ratio of their times, which is what every benchmark here reports."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime

import emu
from benchmarks.transformers import Shape, transformer
from emu.runtime.library import instruction_set

_LEAST_SECONDS = 0.2  # of clean runs
# Before each run of several threads: the workers of the session that ran before spin for a while, in its way.
_PAUSE = 0.1


@dataclass(frozen=True)
class Case:
    """What is emulated, and the most that is wanted of its ratio."""

    name: str
    device: str
    changes: dict[str, object] = field(default_factory=dict)  # to the device
    strength: float = 1.0
    wanted: float | None = None


EVERYTHING: dict[str, object] = {
    "read.weight_noise_model": "additive_constant",
    "read.weight_noise": 0.01,
    "write.model": "gauss_range",
    "write.sigma": 0.01,
}
CASES = (
    Case("strength 0", "rram_adc", {}, 0.0, 1.02),
    Case("programmed weights (lognormal)", "rram", {}, 1.0, 1.05),
    Case("DAC and ADC, 256 rows", "rram_adc", {"read.output_noise": 0, "program.model": "none"}, 1.0, 1.15),
    Case("everything, 256 rows", "rram_adc", EVERYTHING, 1.0, 1.35),
    Case("everything, 128 rows", "rram_adc", {**EVERYTHING, "mapping.tile_rows": 128}, 1.0, 1.6),
    Case("everything, 64 rows", "rram_adc", {**EVERYTHING, "mapping.tile_rows": 64}, 1.0, 2.2),
)


def clock_for(threads: int) -> Callable[[], float]:
    """The clock for sessions of so many threads: processor time where there is one, or other programs would count."""
    return time.thread_time if threads == 1 else time.perf_counter


def seconds(run: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    run()
    return clock() - start


def clean_session(model: bytes, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(shape: Shape, batch: int, threads: int, pairs: int, cases: Sequence[Case] = CASES) -> list[dict[str, Any]]:
    """Time cases for one shape, batch and number of threads; one row for each.

    There are at least two pairs of runs, and more of very short ones. `low` and `high` enclose the middle half of their
    ratios.
    """
    clock = clock_for(threads)
    pause = _PAUSE if threads > 1 else 0
    model = transformer(shape)
    inputs = shape.inputs(batch)
    clean = clean_session(model.SerializeToString(), threads)
    rows = []
    for case in cases:
        emulated = emu.rewrite(model, device=case.device, only="*", set=case.changes)
        session = emu.session(emulated, threads=threads)
        sites = len(emulated.manifest.sites)
        feeds = {**inputs, "emu.strength": np.full(sites, case.strength, np.float32)}

        def run_clean() -> object:
            return clean.run(None, inputs)

        def run_emulated(session=session, feeds=feeds) -> object:
            return session.run(None, feeds)

        run_emulated()
        run_clean()
        run_emulated()
        ratios, clean_times = [], []
        while len(ratios) < max(2, pairs) or sum(clean_times) < _LEAST_SECONDS:
            time.sleep(pause)
            clean_times.append(seconds(run_clean, clock))
            time.sleep(pause)
            ratios.append(seconds(run_emulated, clock) / clean_times[-1])
        low, ratio, high = statistics.quantiles(ratios, n=4, method="inclusive")
        rows.append({
            "shape": shape.name, "batch": batch, "threads": threads, "case": case.name, "sites": sites,
            "ratio": ratio, "low": low, "high": high, "wanted": case.wanted,
            "clean_ms": 1e3 * statistics.median(clean_times), "instruction_set": instruction_set(),
        })  # fmt: skip
    return rows
