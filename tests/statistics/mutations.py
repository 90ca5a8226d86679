"""Would the tests notice a wrong number? `python -m tests.statistics.mutations` breaks each of the twin by 5 %.

Golden and statistical tests, and then the twin's own, run on a copy of the package with that one number changed, and
one of them must fail. A number whose change no output can show is listed below with the reason. Takes about half an
hour.
"""

import argparse
import ast
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TWIN = Path("emu/reference")
FACTOR = 1.05

# file, text on the line, number: why no output shows a change of 5 %
HARMLESS: dict[tuple[str, str, str], str] = {
    ("drift.py", "_LEAST_TARGET =", "1e-7"): "exponents are constant below targets of 0.005",
    ("drift.py", "0.0277316483", "1e-6"): "times are seconds and more",
    ("drift.py", "0.0088 / np.maximum", "1e-3"): "the ratio is 0.2 long before",
    ("programming.py", "np.where(g == 0, g, g + theta", "1.0"): "keeps a division by zero away, the result is not used",
    ("converters.py", "xp.where(bound == 0", "1.0"): "keeps a division by zero away, the result is not used",
    ("converters.py", "controls.numbers.get", "1.0"): "a fixed range has its number always",
    ("converters.py", "distance = ", "0.5"): "only says which outputs stand at a tie",
    ("faults.py", "np.arange(32", "32"): "no code has more bits",
    ("faults.py", "in range(32)", "32"): "no mask has more bits",
    ("periphery.py", "_ROWS_AT_ONCE", "2048"): "how many rows are computed together",
    ("periphery.py", "_DARK =", "2.0"): "inputs are larger than 1e-38",
    ("periphery.py", "_DARK =", "128"): "inputs are larger than 1e-38",
    ("periphery.py", "xp.where(lit, alpha, 1.0)", "1.0"): "keeps a division by zero away, the result is not used",
    ("periphery.py", "tolerance", "2e-6"): "only says which outputs stand at a tie",
}


@dataclass(frozen=True)
class Number:
    """A number in the source, and where it stands."""

    file: str
    line: int
    start: int
    end: int
    text: str
    source: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.text} in '{self.source.strip()}'"

    @property
    def harmless(self) -> str | None:
        """Why a change cannot be seen, None if it must be seen."""
        for (file, fragment, text), reason in HARMLESS.items():
            if (file, text) == (self.file, self.text) and fragment in self.source:
                return reason
        return None


def numbers_of(path: Path) -> Iterator[Number]:
    """Yield the numbers of a source file that a formula might use: with a point, or whole ones from 20 on."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) in (float, int):
            text = lines[node.lineno - 1][node.col_offset : node.end_col_offset]
            if (isinstance(node.value, float) and node.value != 0) or abs(node.value) >= 20:
                assert node.end_col_offset is not None
                yield Number(
                    path.name, node.lineno, node.col_offset, node.end_col_offset, text, lines[node.lineno - 1]
                )  # fmt: skip


def broken(source: str, number: Number) -> str:
    """Return the source with that number larger by 5 %."""
    lines = source.splitlines(keepends=True)
    line = lines[number.line - 1]
    value = ast.literal_eval(number.text)
    changed = value * FACTOR if isinstance(value, float) else round(value * FACTOR)
    lines[number.line - 1] = f"{line[: number.start]}{changed!r}{line[number.end :]}"
    return "".join(lines)


def caught_by(folder: Path) -> str | None:
    """Return the test that fails on the package in that folder, None if all pass."""
    tests = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--tb=no"]
    for part in (["tests/golden", "-k", "twin"], ["tests/statistics", "-k", "twin"], ["tests/reference"]):
        environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        run = subprocess.run([*tests, *part], cwd=folder, env=environment, capture_output=True, text=True)
        if run.returncode not in (0, 5):
            failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
            return failed[0].split(" - ")[0] if failed else f"pytest ended with {run.returncode}"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.statistics.mutations", description=__doc__)
    parser.add_argument("files", nargs="*", default=["drift.py", "programming.py", "writing.py", "periphery.py",
        "converters.py", "mapping.py", "storing.py", "faults.py", "wires.py", "random.py"])  # fmt: skip
    arguments = parser.parse_args()
    survivors = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("emu", "tests", "benchmarks"):
            shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if failure := caught_by(folder):
            sys.exit(f"fails without any change: {failure}")
        for file in arguments.files:
            path = folder / TWIN / file
            source = path.read_text(encoding="utf-8")
            for number in numbers_of(path):
                if number.harmless:
                    continue
                path.write_text(broken(source, number), encoding="utf-8")
                test = caught_by(folder)
                print(f"{'caught' if test else 'SURVIVED'}: {number}  {test or ''}", flush=True)
                if not test:
                    survivors.append(number)
            path.write_text(source, encoding="utf-8")
    if survivors:
        sys.exit(f"{len(survivors)} numbers can change unnoticed")


if __name__ == "__main__":
    main()
