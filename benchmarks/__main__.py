"""Speed and memory of emulation as ratios to the clean model in the same run: `python -m benchmarks`.

Clean and emulated sessions take turns, so that a machine whose speed drifts slows both; the ratio of a pair is what
counts, its median over the pairs is what is printed. One thread is timed by its processor time, several by the clock.
`--save` keeps the rows, `--check` compares with rows kept before.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

import emu
from benchmarks.curves import curves, plot_curves, print_curves
from benchmarks.ratios import CASES, clean_session, clock_for, measure, seconds
from benchmarks.transformers import SHAPES, Shape, transformer
from emu.analysis.figures import check_figure
from emu.errors import InputError
from emu.runtime.library import instruction_set

# name, device, changes: what a new chip costs
CHIPS: list[tuple[str, str, dict[str, object]]] = [
    ("lognormal", "rram", {}),
    ("PCM with drift, both devices of a pair", "pcm", {}),
    ("bit flips in Int8 codes, rate 1e-4", "int8_flips", {"faults.ber": 1e-4}),
]
WORSE = 1.15  # a ratio so much above the one kept before fails a check
DEFAULTS = (["deit-small"], [8], [1, 2])  # shapes, batches, threads


def measure_chips(shape: Shape, threads: int, pairs: int) -> list[dict[str, Any]]:
    """Seconds that a new chip costs: a run with a new seed less a run with the same seed."""
    clock = clock_for(threads)
    model = transformer(shape)
    inputs = shape.inputs(1)
    weights = sum(int(np.prod(tensor.dims)) for tensor in model.graph.initializer) / 1e6
    rows = []
    for name, device, changes in CHIPS:
        session = emu.session(emu.rewrite(model, device=device, only="*", set=changes), threads=threads)

        def run(seed: int, session=session) -> object:
            return session.run(None, {**inputs, "emu.seed": np.int64(seed)})

        run(0)
        costs = []
        for seed in range(1, pairs + 1):
            first = seconds(lambda seed=seed: run(seed), clock)
            costs.append(first - seconds(lambda seed=seed: run(seed), clock))
        rows.append({
            "shape": shape.name, "threads": threads, "chip": name, "millions": weights,
            "seconds": statistics.median(costs), "low": min(costs), "high": max(costs),
        })  # fmt: skip
    return rows


def measure_session(shape: Shape, pairs: int) -> dict[str, Any]:
    """Ratio of the time to create a session."""
    model = transformer(shape)
    emulated = emu.rewrite(model, device="rram_adc", only="*").model
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


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of cases kept in a file that were measured with the instruction set in use here."""
    try:
        rows = [row for row in json.loads(path.read_text(encoding="utf-8")) if "instruction_set" in row]
    except (OSError, ValueError) as error:
        print(f"{path} cannot be compared with: {error}; write such a file with --save", file=sys.stderr)
        sys.exit(2)
    here = [row for row in rows if "case" in row and row["instruction_set"] == instruction_set()]
    if not here:
        others = ", ".join(sorted({row["instruction_set"] for row in rows})) or "none"
        sys.exit(
            f"{path} has no rows to compare with: this machine runs {instruction_set()}, it holds {others}; "
            "keep rows of this machine with --save"
        )
    return here


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("shape", "batch", "threads", "case"))


def slower_than(rows: list[dict[str, Any]], kept: list[dict[str, Any]]) -> list[tuple[dict[str, Any], float]]:
    """Rows whose ratio is far above the one kept, with that one."""
    before = {_key(row): row["ratio"] for row in kept}
    return [(row, before[_key(row)]) for row in rows if row["ratio"] > WORSE * before.get(_key(row), float("inf"))]


def check(rows: list[dict[str, Any]], kept: list[dict[str, Any]], pairs: int) -> list[str]:
    """One sentence for each case that is slower than before, also when it is measured once more."""
    sentences = []
    for row, before in slower_than(rows, kept):
        case = next(case for case in CASES if case.name == row["case"])
        again = measure(SHAPES[row["shape"]], row["batch"], row["threads"], pairs, [case])
        if slower_than(again, kept):
            ratio = min(row["ratio"], again[0]["ratio"])
            sentences.append(
                f"{row['shape']}, batch {row['batch']}, {row['threads']} thread(s), {row['case']}: {ratio:.2f} times "
                f"the clean time, {before:.2f} before; that is {100 * (ratio / before - 1):.0f} % more."
            )
    return sentences


def settings(arguments: argparse.Namespace, kept: list[dict[str, Any]]) -> list[tuple[str, int, int]]:
    """Shapes, batches and threads to measure: those asked for, or where none are, those of the rows kept."""
    asked = arguments.shapes, arguments.batches, arguments.threads
    if kept and not any(asked):
        return sorted({(row["shape"], row["batch"], row["threads"]) for row in kept})
    shapes, batches, threads = (given or default for given, default in zip(asked, DEFAULTS, strict=True))
    return list(itertools.product(shapes, batches, threads))


def print_ratios(name: str, batch: int, threads: int, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}, batch {batch}, {threads} thread(s), clean {rows[0]['clean_ms']:.1f} ms")
    for row in rows:
        spread = f"({row['low']:.2f} to {row['high']:.2f}), wanted {row['wanted']:.2f}"
        print(f"  {row['case']:34} {row['ratio']:5.2f}  {spread}", flush=True)


def print_chips(shape: Shape, threads: list[int], pairs: int) -> list[dict[str, Any]]:
    rows = []
    for count in threads:
        chips = measure_chips(shape, count, pairs)
        rows += chips
        print(f"\n{shape.name}, {chips[0]['millions']:.0f} million weights, {count} thread(s): a new chip")
        for row in chips:
            print(f"  {row['chip']:40} {row['seconds']:6.3f} s  ({row['low']:.3f} to {row['high']:.3f})")
    session = measure_session(shape, pairs)
    print(f"  creating a session: {session['session']:.2f} ({session['low']:.2f} to {session['high']:.2f})")
    return [*rows, session]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--shapes", nargs="+", choices=sorted(SHAPES), help="deit-small unless given")
    parser.add_argument("--batches", nargs="+", type=int, help="8 unless given")
    parser.add_argument("--threads", nargs="+", type=int, help="1 and 2 unless given")
    parser.add_argument("--pairs", type=int, default=7, help="clean and emulated runs in turn, per case")
    parser.add_argument("--chips", action="store_true", help="also time new chips, and creating sessions")
    parser.add_argument("--memory", action="store_true", help="also measure peak memory")
    parser.add_argument("--curves", action="store_true", help="instead: ratios against the size of one encoder block")
    parser.add_argument("--plot", type=Path, help="draw the curves into this file, PNG, SVG or PDF")
    parser.add_argument("--save", type=Path, help="write the rows to this JSON file")
    parser.add_argument(
        "--check",
        type=Path,
        help="exit with 1 if a ratio is 15 %% above the one in this file, twice; without shapes, batches and threads "
        "those of the file are measured; rows of another instruction set are left out",
    )
    arguments = parser.parse_args()
    if arguments.plot and not arguments.curves:
        parser.error("--plot draws the curves: add --curves")
    if arguments.curves and arguments.check:
        parser.error("--check compares cases, --curves measures others; take one of them")
    kept = load_rows(arguments.check) if arguments.check else []

    print(f"{platform.processor() or platform.machine()}, onnxruntime {onnxruntime.__version__}, {instruction_set()}")
    print("all graph optimizations on, in both; ratio = emulated / clean, median of pairs (middle half of them)")
    rows: list[dict[str, Any]] = []
    if arguments.curves:
        if arguments.plot:
            try:
                check_figure(arguments.plot)
            except InputError as error:
                sys.exit(str(error))
        rows = print_curves(curves(arguments.pairs))
        if arguments.plot:
            plot_curves(rows, arguments.plot)
    else:
        for name, of_shape in itertools.groupby(settings(arguments, kept), key=lambda each: each[0]):
            all_threads = []
            for _, batch, threads in of_shape:
                measured = measure(SHAPES[name], batch, threads, arguments.pairs)
                print_ratios(name, batch, threads, measured)
                rows += measured
                all_threads.append(threads)
            if arguments.chips:
                rows += print_chips(SHAPES[name], sorted(set(all_threads)), arguments.pairs)
            if arguments.memory:
                clean, *others = (peak_memory(SHAPES[name], device) for device in (None, "rram", "rram_adc"))
                rows.append({"shape": name, "clean_mb": clean, "rram_mb": others[0], "rram_adc_mb": others[1]})
                print(f"\n{name}: peak memory {clean:.0f} MB clean, {others[0]:.0f} rram, {others[1]:.0f} rram_adc")
    if arguments.save:
        arguments.save.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if arguments.check and (slower := check(rows, kept, arguments.pairs)):
        sys.exit(f"slower than in {arguments.check}:\n  " + "\n  ".join(slower))


if __name__ == "__main__":
    main()
