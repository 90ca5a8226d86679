"""Processor instructions per element of the native library's loops: `python -m benchmarks.instructions`.

Times depend on the machine and on who else uses it; instructions do not, so that two versions can be compared anywhere.
Needs valgrind, CMake and a C++ compiler. valgrind cannot run AVX-512, so only the other instruction sets are counted.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from onnx import numpy_helper

import emu
from benchmarks.peers import one_product

_HERE = Path(__file__).parent
_ROOT = _HERE.parents[1]
SETS = ("avx2", "baseline")
# What is printed, loop of loops.cpp, what an element of it is.
LOOPS = [
    ("a normal", "normals", "normal"),
    ("range of the DAC", "input range", "input"),
    ("DAC", "DAC", "input"),
    ("ADC and accumulation", "ADC", "output"),
    ("noise, ADC and accumulation", "noise and ADC", "output"),
    ("packing", "pack", "weight"),
    ("product, 48 rows, 256 deep", "product", "multiply-add"),
]
# What is printed, device, changes: what is done to each weight for a new chip.
CHIPS: list[tuple[str, str, dict[str, object]]] = [
    ("lognormal", "rram", {}),
    ("PCM with drift, both devices", "pcm", {}),
    ("bit flips of Int8 codes, rate 1e-4", "int8_flips", {"faults.ber": 1e-4}),
]


def build(folder: Path) -> Path:
    """Compile the loops; returns the program."""
    tools = {name: shutil.which(name) for name in ("cmake", "valgrind")}
    if missing := [name for name, path in tools.items() if path is None]:
        sys.exit(f"{' and '.join(missing)} not found; install with your system's packages")
    for command in (["cmake", "-S", str(_HERE), "-B", str(folder)], ["cmake", "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"'{' '.join(command)}' failed:\n{done.stdout}{done.stderr}")
    return folder / "instructions"


def node_words(device: str, changes: dict[str, object]) -> list[str]:
    """Attributes and numbers of a product's node on a device, as words for the program."""
    model = emu.rewrite(one_product(np.eye(4, dtype=np.float32)), device=device, only="*", set=changes).model
    node = next(node for node in model.graph.node if node.domain == "emu")
    attributes = {each.name: each.s.decode() if each.s else each.i for each in node.attribute}
    device_input = next(each for each in model.graph.initializer if each.name == node.input[2])
    numbers = numpy_helper.to_array(device_input).ravel()
    words = [f"{name}='{value}" if isinstance(value, str) else f"{name}={value}" for name, value in attributes.items()]
    return [*words, "--", *map(str, numbers.tolist())]


def instructions(program: Path, *words: str) -> float:
    """Instructions per element of one loop."""
    callgrind = ["valgrind", "--tool=callgrind", "--toggle-collect=counted", "--callgrind-out-file=/dev/null"]
    done = subprocess.run([*callgrind, str(program), *words], capture_output=True, text=True)
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode != 0 or collected is None:
        sys.exit(f"'{' '.join([program.name, *words[:2]])}' failed:\n{done.stderr}")
    return int(collected[1]) / int(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.instructions", description=__doc__)
    parser.add_argument("--build", type=Path, default=_ROOT / "build" / "instructions", help="folder to compile in")
    parser.add_argument("--save", type=Path, help="write the rows to this JSON file")
    arguments = parser.parse_args()
    program = build(arguments.build)
    loops = [(title, [loop], element) for title, loop, element in LOOPS]
    loops += [(f"new chip: {title}", ["program", *node_words(*device)], "weight") for title, *device in CHIPS]
    rows = []
    print(f"{'instructions':46}{'':14}{''.join(f'{name:>10}' for name in SETS)}")
    for title, words, element in loops:
        counts = {name: instructions(program, name, *words) for name in SETS}
        rows.append({"loop": title, "element": element, **counts})
        print(f"{title:46}{'per ' + element:14}{''.join(f'{count:10.2f}' for count in counts.values())}", flush=True)
    if arguments.save:
        arguments.save.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
