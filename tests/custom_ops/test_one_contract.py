"""Profile, twin and library accept the same nodes and numbers, and refuse the others with the same sentence."""

import itertools
import math
import random
import re
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import onnxruntime
import pytest

from emu.contract.schema import ATTRIBUTES, NUMBERS, OPERATORS, Range, attribute_types, plain
from emu.contract.structure import check_controls, needed_entries, number_of, parse_structure, wrong_settings
from emu.device import load_profile
from emu.device.fields import said_of_settings
from emu.device.profile import SETTINGS
from emu.errors import InputError
from emu.runtime import library_path
from emu.runtime.library import programmed_weight
from tests.custom_ops.one_node import controls, one_node_model

OPERANDS: dict[str, tuple[Any, ...]] = {
    "CrossbarMatMul": (np.ones((3, 4), np.float32),),
    "CrossbarMatMulQuantized": (np.ones((3, 4), np.int8), np.float32(1), np.float32(0)),
    "CrossbarMatMulDynamic": (),
    "FaultyWeight": (np.ones((3, 4), np.float32),),
}
FED = {"X": np.ones((2, 3), np.float32), "A": np.ones((2, 3), np.float32), "B": np.ones((3, 4), np.float32)}
FED["keys"] = np.zeros((0, 2), np.int64)
# What concerns the node's own place, and is set only by the test of single attributes.
OF_THE_SITE = ("site", "sites", "array", "sample_axis", "heads", "head_axis", "head_groups", "head_share", "window")
TABLES = ("target_us", "mean_us", "std_us", "table_time_s", "mean_nu", "std_nu")
Case = tuple[str, dict[str, Any], list[float]]


def values_of(name: str, wrong: bool = False) -> list[Any]:
    """Values of an attribute: its words, or both ends of its range and what lies between and beyond."""
    legal = ATTRIBUTES[name].legal
    if name == "program_function":
        return ["", "nobody"]
    if name == "window":
        return ["", "3,1,1,1,1", "1,1,1,0,0;1,1,1,0,0", *(["3", "0,1,1,1,1", ",", "3,1,1,1,1;"] if wrong else [])]
    if not isinstance(legal, Range):
        return [*legal, *(["other"] if wrong else [])]
    near = [*legal.values, 0, 1, 2, 3, 4, 8, 255, legal.low, legal.high]
    beyond = [-1, -2, 5, 2**31, 2**32, 2**63 - 1] if wrong else []
    return sorted({int(each) for each in near if legal.allows(each) and abs(each) < 2**33} | set(beyond))


def numbers_of(name: str) -> list[float]:
    """Values of an entry, legal and not."""
    return [0.0, 1.0, 2.0, 0.5, 8.0, -1.0, 1.5, 17.0, 1e6, 86400.0, float("nan"), float("inf")]


def random_case(rng: random.Random) -> Case:
    op = rng.choice(list(OPERATORS))
    attributes = plain(op)
    names = [name for name in attributes if name not in ("format", "entries", *OF_THE_SITE)]
    for name in rng.sample(names, min(rng.choice((1, 2, 3, 4, 6)), len(names))):
        attributes[name] = rng.choice(values_of(name))
    if rng.random() < 0.3:
        name = rng.choice([name for name in attributes if name != "entries"])
        attributes[name] = rng.choice(values_of(name, wrong=True))
    entries = list(needed_entries(op, attributes)) if isinstance(attributes.get("table_points", 0), int) else []
    optional = [name for name, row in NUMBERS.items() if not row.is_family] + [
        "program.parameter.gain", "program.parameter.", "program.target_us.0", "program.mean_us.01.0",
        "program.c5", "program.mean_us.1", "", "other", "program.target_us.1234567", "program.std_us.0.0 ",
    ]  # fmt: skip
    if rng.random() < 0.5:
        entries += rng.sample(optional, rng.choice((1, 2)))
    if entries and rng.random() < 0.2:
        entries.remove(rng.choice(entries))
    attributes["entries"] = ",".join(entries)
    entries = attributes["entries"].split(",") if attributes["entries"] else []
    numbers = [1.0 + index % 7 if name.startswith("program.t") else 1.0 for index, name in enumerate(entries)]
    for index, name in enumerate(entries):
        if "bits" in name or "steps" in name:
            numbers[index] = rng.choice((0.0, 2.0, 8.0))
        elif "stuck" in name or "g_min" in name:
            numbers[index] = 0.25
        if rng.random() < 0.1:
            numbers[index] = rng.choice(numbers_of(name))
    return op, attributes, numbers


def twin_says(case: Case) -> str:
    op, attributes, numbers = case
    feeds = {**FED, **controls(numbers)}
    try:
        structure = parse_structure(op, attributes)
        feeds["strength"] = np.ones(structure.sites, np.float32)
        feeds["ranges"] = np.tile(np.float32([1, -1, 1, 1]), (structure.sites, 1))
        given = {each.name: feeds[each.name] for each in OPERATORS[op].controls}
        check_controls(structure, **{"ranges": None, "faults": None, **given})
    except InputError as error:
        return str(error).split(": ", 2)[2]
    return ""


@cache
def options() -> onnxruntime.SessionOptions:
    made = onnxruntime.SessionOptions()
    made.log_severity_level, made.intra_op_num_threads = 4, 1
    made.register_custom_ops_library(str(library_path()))
    return made


def library_says(case: Case) -> str:
    op, attributes, numbers = case
    model = one_node_model(op, attributes, *OPERANDS[op]).SerializeToString()
    try:
        session = onnxruntime.InferenceSession(model, options(), providers=["CPUExecutionProvider"])
        feeds = {**FED, **controls(numbers)}
        feeds["strength"] = np.ones(attributes["sites"], np.float32)
        feeds["ranges"] = np.tile(np.float32([1, -1, 1, 1]), (attributes["sites"], 1))
        session.run(None, {each.name: feeds[each.name] for each in session.get_inputs()})
    except Exception as error:
        said = " ".join(str(error).split())
        found = re.search(r"emu: node 'the/node', (.*)$", said)
        return found[1] if found else f"?{said}"
    return ""


# A profile leaves out what has no effect, has no list of bits that there are not and no tables with gaps, and one word
# of its own: storage as in the `model`.
OF_PROFILES = re.compile(
    r".*( has no effect|^[\w.]+ is missing: | must give the resolution|^\[program\] (time_s|target_us|mean_us|std_us) |"
    r"^\[drift\] (mean|std)_nu |^faults\.storage is .*, model$|"
    r"granular needs levels|^\[faults\] (flip|protection) )"
)


def as_profile(case: Case) -> dict[str, Any] | None:
    """The plain data of the device that says the same as a node, None where no profile can."""
    op, attributes, numbers = case
    entries = attributes["entries"].split(",") if attributes["entries"] else []
    given = {**plain("CrossbarMatMul"), **plain("CrossbarMatMulDynamic"), **attributes}
    flips, stuck = given["fault_storage"] != "none", "faults.stuck_low" in entries
    of_others = (
        *OF_THE_SITE,
        "key_axis",
        "range_tiles",
        "range_slices",
        "range_polarities",
        "format",
        "code_bits",
        "block_rows",
        "table_times",
        "table_points",
        "drift_points",
        "fault_source",
    )
    if (
        op == "CrossbarMatMulQuantized"  # has codes of its own
        or any(given[name] != value for name, value in plain(op).items() if name in of_others[:-4])
        or given["fault_source"] != ("random" if flips or stuck else "none")
        or (given["fault_mask"] != 255 and not flips)
        or (flips and given["fault_mask"] == 0)
        or "other" in (given["dac"], given["adc"])  # `none` is a model there, and no range
        or not all(number_of(name) for name in entries)
        or len(set(entries)) < len(entries)
        or any(name.rpartition(".")[0] in entries for name in entries)  # a number and a fit of one name
    ):
        return None
    settings = {setting: given[name] for name, setting in SETTINGS.items() if given[name] != ATTRIBUTES[name].absent}
    mask = settings.pop("faults.mask", 255)
    if flips:
        settings["faults.flip"] = [bit for bit in range(32) if mask >> bit & 1]
    data: dict[str, Any] = {section: {"model": "none"} for section in ("program", "drift", "write", "dac", "adc")}
    for converter in ("dac", "adc"):
        if f"{converter}.range" in settings:
            data[converter]["model"] = "uniform"
    for name, value in settings.items():
        section, field = name.split(".")
        data.setdefault(section, {})[field] = value
    for name, value in zip(entries, numbers, strict=True):
        row = number_of(name)
        section, field, *places = name.split(".", 2)
        content = data.setdefault(section, {})
        whole = row is not None and row.legal.whole and value == value // 1
        if not places:
            content[field] = int(value) if whole else value
        elif field == "parameter" or not places[0][0].isdecimal():
            content.setdefault("parameters" if field == "parameter" else field, {})[places[0]] = value
        else:
            content.setdefault(field, {})[tuple(map(int, places[0].split(".")))] = value
    for content, field in itertools.product((data["program"], data["drift"]), TABLES):
        if cells := content.get(field):
            shape = [1 + max(axis) for axis in zip(*cells, strict=True)]
            if len(cells) != math.prod(shape):
                return None
            content[field] = np.reshape([cells[place] for place in np.ndindex(*shape)], shape).tolist()
    return data


def check_profile(case: Case, twin: str) -> str | None:
    """A profile that says the same meets the same sentence, in its own names; None where no profile says the same."""
    attributes = case[1]
    data = as_profile(case)
    if data is None:
        return None
    try:
        profile = load_profile({"name": "it", **data})
    except InputError as error:
        said = str(error).split(": ", 1)[1].removesuffix(".")
        if OF_PROFILES.match(said):
            return None
        assert twin and said in mistakes(case), (said, twin, case)
        return said
    structure, entries = profile.structure(), attributes["entries"].split(",") if attributes["entries"] else []
    same = all(structure.get(name, value) == value for name, value in attributes.items() if name != "entries")
    if not same or set(profile.entries()) != set(entries):
        return None  # it has defaults
    assert not twin, (twin, case)
    return ""


def mistakes(case: Case) -> set[str]:
    """All sentences about a node, each mistake by itself, as profiles say them."""
    op, attributes, numbers = case
    entries = attributes["entries"].split(",") if attributes["entries"] else []
    found = [twin_says(case), *wrong_settings(attributes, dict(zip(entries, numbers, strict=True)))]
    found += [twin_says((op, {**plain(op), name: value}, [])) for name, value in attributes.items()]
    return set(said_of_settings(found, SETTINGS))


# What only a run finds, of operands that these attributes do not fit; it comes before the numbers of the device.
OF_OPERANDS = re.compile(
    r"\?|attribute '\w+': |attribute '(adc|heads|program_function|sample_axis)' .*(;|divide)|input '\w'"
)


def check(case: Case) -> str | None:
    """Check a node; return what a profile says of the same, if any can."""
    twin, library = twin_says(case), library_says(case)
    if not OF_OPERANDS.match(library) or twin.startswith("attribute"):
        assert library == twin, case
    return check_profile(case, twin)


def is_small(attributes: dict[str, Any]) -> bool:
    """Whether what it takes to run a node is soon made."""
    counts = [attributes.get(name, 0) for name in ("sites", "table_points", "table_times", "drift_points")]
    return all(count <= 1000 for count in counts) and counts[1] * counts[2] <= 1000


def cases(count: int, seed: int) -> Iterator[Case]:
    rng = random.Random(seed)
    return (random_case(rng) for _ in range(count))


def test_random_nodes_meet_the_same_sentence() -> None:
    spoken: dict[str, int] = {}
    by_profiles: dict[str, int] = {}
    for case in cases(1500, seed=1):
        if not is_small(case[1]):
            continue
        for counted, said in ((by_profiles, check(case)), (spoken, twin_says(case))):
            kind = "no profile" if said is None else re.sub(r"'[^']*'|[\w.]*[\d.]+", "_", said)
            counted[kind] = counted.get(kind, 0) + 1
    assert len(spoken) > 30 and spoken[""] > 200  # not all of one kind
    assert len(by_profiles) > 15 and by_profiles[""] > 70


def test_what_ctypes_gives_meets_the_sentences_of_a_node() -> None:
    for changes in ({"weight_bits": 1}, {"weight_bits": "8"}, {"encoding": 3}, {"encoding": "other"}):
        case = ("CrossbarMatMul", {**plain("CrossbarMatMul"), **changes}, [])
        with pytest.raises(InputError) as refusal:
            programmed_weight(np.ones((3, 4), np.float32), case[1], np.zeros(0, np.float32))
        assert str(refusal.value) == f"node 'program', {library_says(case)}" == f"node 'program', {twin_says(case)}"
    lacking = {name: value for name, value in plain("CrossbarMatMul").items() if name != "site"}
    with pytest.raises(InputError, match="attribute 'site' is missing; every attribute must be present"):
        programmed_weight(np.ones((3, 4), np.float32), lacking, np.zeros(0, np.float32))


@pytest.mark.parametrize("op", OPERATORS)
def test_every_single_attribute_meets_the_same_sentence(op: str) -> None:
    for name in attribute_types(op):
        for value in values_of(name, wrong=True) if name != "entries" else ():
            if name != "sites" or value < 1000:
                check((op, {**plain(op), name: value}, []))


def pairs(op: str) -> Iterator[Case]:
    names = [name for name in attribute_types(op) if name not in ("format", "entries", "site", "sites", "array")]
    for one, other in itertools.combinations(names, 2):
        for first, second in itertools.product(values_of(one), values_of(other)):
            attributes = {**plain(op), one: first, other: second}
            if is_small(attributes):
                entries = list(needed_entries(op, attributes))
                attributes["entries"] = ",".join(entries)
                yield op, attributes, [1.0 + index % 7 for index, _ in enumerate(entries)]


@pytest.mark.slow
@pytest.mark.parametrize("op", OPERATORS)
def test_every_pair_of_attributes_meets_the_same_sentence(op: str) -> None:
    for case in pairs(op):
        check(case)


@pytest.mark.slow
def test_many_random_nodes_meet_the_same_sentence() -> None:
    for case in cases(30_000, seed=2):
        if is_small(case[1]):
            check(case)
