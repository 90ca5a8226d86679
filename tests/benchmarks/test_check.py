"""A check of speed compares like with like, forgives one slow measurement, and names what became slower."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as benchmarks
from benchmarks.ratios import CASES
from emu.runtime.library import instruction_set


def row(case: str, ratio: float, **changes: Any) -> dict[str, Any]:
    numbers = {"ratio": ratio, "low": ratio, "high": ratio, "wanted": 1.5, "clean_ms": 1.0, "sites": 3}
    here = {"shape": "deit-tiny", "batch": 8, "threads": 1, "case": case, "instruction_set": instruction_set()}
    return {**here, **numbers, **changes}


class Speed:
    """Stands in for measuring: every case takes what it is told, in turn."""

    def __init__(self, *ratios: float) -> None:
        self.ratios = list(ratios)
        self.measured: list[tuple[str, int, int]] = []

    def __call__(
        self, shape: Any, batch: int, threads: int, pairs: int, cases: Any = CASES[:2]
    ) -> list[dict[str, Any]]:
        self.measured.append((shape.name, batch, threads))
        ratio = self.ratios.pop(0)
        return [row(case.name, ratio, shape=shape.name, batch=batch, threads=threads) for case in cases]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    def check(speed: Speed, kept: list[dict[str, Any]], *options: str) -> None:
        path = tmp_path / "baseline.json"
        path.write_text(json.dumps(kept), encoding="utf-8")
        monkeypatch.setattr(benchmarks, "measure", speed)
        monkeypatch.setattr(sys, "argv", ["benchmarks", "--check", str(path), *options])
        benchmarks.main()

    return check


FIRST = CASES[0].name


def test_a_case_slower_twice_fails_with_a_sentence(run: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        run(Speed(1.3, 1.2), [row(FIRST, 1.0)])
    said = str(stopped.value.code)
    assert f"deit-tiny, batch 8, 1 thread(s), {FIRST}: 1.20 times the clean time, 1.00 before" in said
    assert "20 % more" in said and said.count("\n") == 1


def test_a_case_slower_once_passes(run: Any) -> None:
    run(Speed(1.3, 1.1), [row(FIRST, 1.0)])


def test_a_case_within_the_margin_is_not_measured_again(run: Any) -> None:
    speed = Speed(1.14)
    run(speed, [row(FIRST, 1.0)])
    assert len(speed.measured) == 1


def test_the_rows_kept_say_what_is_measured(run: Any) -> None:
    speed = Speed(1.0, 1.0)
    run(speed, [row(FIRST, 1.0), row(FIRST, 1.0, batch=2, threads=2), row(FIRST, 1.0, batch=2, threads=2)])
    assert sorted(speed.measured) == [("deit-tiny", 2, 2), ("deit-tiny", 8, 1)]


def test_rows_of_another_machine_are_left_out(run: Any) -> None:
    run(Speed(1.3), [row(FIRST, 1.0, instruction_set="other"), row(CASES[1].name, 1.3)])


def test_nothing_to_compare_with_is_no_success(run: Any) -> None:
    with pytest.raises(SystemExit, match="no rows to compare with: this machine runs"):
        run(Speed(), [row(FIRST, 1.0, instruction_set="other")])


def test_the_baseline_of_this_checkout_can_be_compared_with() -> None:
    rows = json.loads((Path(benchmarks.__file__).parent / "baseline.json").read_text(encoding="utf-8"))
    assert {each["case"] for each in rows} == {case.name for case in CASES}
    assert {(each["shape"], each["batch"]) for each in rows} == {("deit-tiny", 8)}


@pytest.mark.parametrize("text", [None, "no JSON"])
def test_a_file_that_cannot_be_read_is_bad_input(
    text: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        benchmarks.load_rows(path)
    assert stopped.value.code == 2
    assert f"{path} cannot be compared with" in capsys.readouterr().err
