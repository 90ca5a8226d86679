"""How far emu is from other simulators where both compute the same thing: `python -m benchmarks.agreement`.

Compares with aihwkit, if it is installed (`pip install aihwkit`; it is no dependency of this project), and says so if
it is not. aihwkit-lightning is compared by the tests in `tests/peers`, CrossSim by stored numbers in `tests/golden`.
"""

import argparse
import dataclasses
import json
import sys
from importlib import metadata

from benchmarks.agreement.one_crossbar import NATIVE, TWIN, Crossbar
from benchmarks.agreement.results import Result
from emu.contract.schema import FORMAT

CROSSBARS: dict[str, Crossbar] = {"python": TWIN, "native": NATIVE}


def compare_with_aihwkit(crossbar: Crossbar) -> list[Result]:
    """Compare with aihwkit, or say that it is missing."""
    try:
        import aihwkit

        from benchmarks.agreement.with_aihwkit import compare
    except ImportError as error:
        print(f"aihwkit: skipped, {error}")
        return []
    print(f"aihwkit {aihwkit.__version__}, torch {metadata.version('torch')}")
    results = []
    for result in compare(crossbar):
        results.append(result)
        print(line_of(result), flush=True)
    return results


def line_of(result: Result) -> str:
    """Return a line of the table."""
    verdict = "" if result.agrees else "  DIFFERS"
    if result.kind == "values":
        found = f"{result.compared:6} values, largest difference {result.largest_difference:.1e}, {result.ties} ties"
    else:
        found = (
            f"{result.compared:6} draws, deviations within {100 * result.largest_difference:.2f} % "
            f"(standard error {100 * result.expected_error:.2f} %), {result.deviation_errors:.1f} standard errors; "
            f"means {result.mean_errors:.1f}"
        )
    return f"  {result.what:66} {found}{verdict}"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=__doc__)
    parser.add_argument("--ops", choices=CROSSBARS, default="native", help="the library, or its NumPy twin")
    parser.add_argument("--json", help="also write the results to this file")
    arguments = parser.parse_args()
    print(f"emu, operators of format {FORMAT}, ops: {arguments.ops}")
    results = compare_with_aihwkit(CROSSBARS[arguments.ops])
    if arguments.json:
        with open(arguments.json, "w", encoding="utf-8") as file:
            json.dump([dataclasses.asdict(result) for result in results], file, indent=1)
    if not all(result.agrees for result in results):
        sys.exit(1)


if __name__ == "__main__":
    main()
