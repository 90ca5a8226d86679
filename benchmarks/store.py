"""Time and peak memory of `emu results` on a store of many trials: `python -m benchmarks.store [TRIALS] [FILE]`.

The trials have made-up results; the store is written to FILE, or to a temporary folder.
"""

import random
import sys
import tempfile
from pathlib import Path

from benchmarks.size import measure
from emu import Bench, Trial
from emu.demo import data_path, model_path
from emu.evaluation import Score
from emu.sweep import Store
from emu.sweep.environment import here
from emu.sweep.rows import Result
from emu.sweep.setup import describe

COMPONENTS = ("query", "key", "value", "attention_output", "ffn_up", "ffn_down")
METRICS = ("accuracy", "top5_accuracy", "loss", "ece", "agreement", "output_snr_db")
CHIPS = 100
AT_ONCE = 5000


def write_store(path: Path, trials: int) -> None:
    """A study of sigma by layer by component, 100 chips each."""
    bench = Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=10)
    numbers, environment = random.Random(0), here("native")
    points = [
        (sigma, f"layer={layer} component={component}")
        for sigma in range(1, 1 + -(-trials // (CHIPS * 4 * len(COMPONENTS))))
        for layer in range(4)
        for component in COMPONENTS
    ]
    every = [
        Trial(seed=seed, only=only, set={"program.sigma": 0.01 * sigma})
        for sigma, only in points
        for seed in range(CHIPS)
    ]
    with Store(path) as store:
        study = store.study("sweep", describe(bench))
        for start in range(0, trials, AT_ONCE):
            scores = [
                Score({name: numbers.random() for name in METRICS}, 5, 10, 0) for _ in every[start : start + AT_ONCE]
            ]
            results = [Result(score, 0.1, environment) for score in scores]
            study.add_all(list(zip(every[start:trials], results, strict=False)))


def main() -> None:
    """Print what listing takes, as a summary and trial by trial."""
    trials = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    with tempfile.TemporaryDirectory() as folder:
        path = Path(sys.argv[2] if len(sys.argv) > 2 else f"{folder}/study.db")
        if not path.exists():
            write_store(path, trials)
        for arguments in ([], ["--group", "layer"], ["--where", "layer=1", "--json"], ["--trials"]):
            seconds, peak = measure(["results", str(path), *arguments])
            print(f"emu results {' '.join(arguments):26} {trials} trials  {seconds:5.1f} s  {peak:5.0f} MB")


if __name__ == "__main__":
    main()
