"""Whether training helped: both models exported, rewritten, and measured on the same chips."""

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emu.analysis.compare import compare, summarize
from emu.evaluation import Bench, DataSource, Trial
from emu.evaluation.metrics import metric_spread
from emu.rewriter import Device, Rule
from emu.train.exporting import export
from emu.train.trainer import write_whole


@dataclass(frozen=True)
class Remeasured:
    """Accuracies before and after.

    Attributes:
        path: the exported model after training.
        rows: for `before` and `after`: `model`, `clean`, and over chips `mean`, `low`, `high` (95 % t interval).
        gain: `mean`, `low` and `high` of after less before, paired by chip; None without a model before.
    """

    path: Path
    rows: tuple[dict[str, Any], ...]
    gain: dict[str, float] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"path": str(self.path), "rows": list(self.rows), "gain": self.gain}


def remeasure(
    before: str | Path | None,
    after: str | Path,
    data: DataSource,
    *,
    device: Device,
    set: Mapping[str, Any] | None = None,
    map: Sequence[Rule] = (),
    only: str | None = None,
    exclude: str | None = None,
    chips: int = 10,
    progress: Callable[[int, int], None] | None = None,
) -> Remeasured:
    """Exports both folders and measures them on the same chips; writes `model.onnx` and `evaluation.json` in `after`.

    Args:
        before: folder of the model before training; None for none.
        after: folder of the model after it.
        data: held-out samples.
        device: of the chips.
        set: changes of the device.
        map: other devices for some sites.
        only: sites to emulate.
        exclude: sites to leave digital.
        chips: number of chips, seeds 0, 1, ...
        progress: called with the trials done and all of them.

    Raises:
        InputError: a model cannot be exported, or data and device do not fit.
    """
    after = Path(after)
    target = after / "model.onnx"
    with tempfile.TemporaryDirectory() as scratch:
        models = {"after": export(after, target, overwrite=True).path}
        if before is not None:
            models = {"before": export(before, Path(scratch) / "model.onnx").path, **models}
        benches = {
            name: Bench(path, data, task="classification", device=device, set=set, map=map, only=only, exclude=exclude)
            for name, path in models.items()
        }
        if before is None:
            bench = benches["after"]
            values = []
            for seed in range(chips):
                values.append(bench.run(Trial(seed)).accuracy)
                if progress is not None:
                    progress(seed + 1, chips)
            spread = metric_spread("accuracy", values)
            low, high = spread.ci95 or (spread.mean, spread.mean)
            rows = [{"model": "after", "clean": bench.clean.accuracy, "mean": spread.mean, "low": low, "high": high}]
            gain = None
        else:
            table = compare(benches["before"], benches["after"], chips=chips, progress=progress).table
            means = summarize(table).set_index("what")
            rows = [
                {"model": name, "clean": benches[name].clean.accuracy, **_interval(means.loc[what])}
                for name, what in (("before", "first"), ("after", "second"))
            ]
            gain = _interval(means.loc["difference"])
    result = Remeasured(target, tuple(rows), gain)
    write_whole(after / "evaluation.json", json.dumps(result.as_dict(), indent=2))
    return result


def _interval(row: Any) -> dict[str, float]:
    return {name: float(row[name]) for name in ("mean", "low", "high")}
