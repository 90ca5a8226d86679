"""What a model costs on a device: tiles, cells, conversions, energy, area and latency, counted from its sites.

Counts follow from the model and the device; energy, area and time follow from the counts by the constants in the
device's section [cost], each of which names its source. What a device gives no constant for is not modelled: it is
NaN and named in a note, never zero. `docs/cost.md` says what is counted and what is not.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

from emu.contract.site import Site
from emu.device import Profile, describe, load_profile
from emu.device.sections.cost import CostCircuits
from emu.errors import InputError

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from emu.device import Overrides
    from emu.rewriter import Device, EmulatedModel, Rule

HOROWITZ = "Horowitz 2014, 45 nm"
PARTS = {  # of the energy, and the constants that each takes
    "array": "cost.read_voltage_v, cost.read_ns",
    "dac": "cost.dac_pj",
    "adc": "cost.adc_pj",
    "shift_add": "cost.shift_add_pj",
    "buffer": "cost.buffer_pj_per_bit",
    "core": "cost.core_pj",
    "write": "cost.write_pj, or cost.write_voltage_v and cost.write_ns",
}
AREAS = {
    "cells": "cost.cell_area_um2",
    "DACs": "cost.dac_area_um2",
    "ADCs": "cost.adc_area_um2",
    "all else in a core": "cost.core_area_um2",
}
PART_LABELS = {
    "array": "array",
    "dac": "DAC",
    "adc": "ADC",
    "shift_add": "shift and add",
    "buffer": "buffers",
    "core": "all else in a core",
    "write": "writing K and V",
}
ENERGIES = tuple(f"energy_{part}_uj" for part in PARTS)
DIGITAL = ("digital_arithmetic_uj", "digital_cache_uj", "digital_fetch_uj")
ATTENTION = ("query", "key", "value", "query_key_value", "key_value", "attention_scores", "attention_context")
WRITTEN_CELL_BITS = 2  # of an operand that clipformer writes, as in its paper
Notes = dict[str, dict[str, None]]  # sentences, and what to list in their braces
EXACT_BITS = 8  # of a converter that neither the device nor its [cost] gives a resolution


@dataclass(frozen=True)
class Constant:
    """What a constant of the digital baseline means: its unit, and where its value comes from."""

    unit: str
    meaning: str
    source: str


@dataclass(frozen=True)
class Baseline:
    """The digital accelerator to compare with: its constants, with units and sources."""

    digital_multiply_pj: Annotated[float, Constant("pJ", "8-bit multiplication (32-bit float: 3.7)", HOROWITZ)] = 0.2
    digital_add_pj: Annotated[float, Constant("pJ", "32-bit addition (32-bit float: 0.9)", HOROWITZ)] = 0.1
    digital_bits: Annotated[int, Constant("bits", "of a number", "assumed")] = 8
    digital_dram_pj_per_bit: Annotated[float, Constant("pJ", "one bit from DRAM: 640 pJ for 32", HOROWITZ)] = 20.0
    digital_cache_pj_per_bit: Annotated[float, Constant("pJ", "one bit from an 8 KB cache: 10 pJ for 64", HOROWITZ)] = (
        10 / 64
    )

    @classmethod
    def of(cls, changes: "Mapping[str, Any] | Iterable[str] | None" = None) -> "Baseline":
        """The constants with some of them changed: `{"digital_bits": 32}` or strings `digital_bits=32`.

        Raises:
            InputError: an unknown constant, or a value that it cannot have.
        """
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in _pairs(changes):
            if name not in kinds:
                raise InputError(
                    f"The constant '{name}' is not known: there are {', '.join(kinds)} of the digital baseline; those "
                    "of a device are its settings (--set cost.adc_pj=2)."
                )
            values[name] = _checked(name, value, kinds[name])
        return cls(**values)


def constants(profiles: Iterable[Profile], baseline: Baseline | None = None) -> "pd.DataFrame":
    """The constants of devices and of the digital baseline.

    Returns:
        `device` ("digital" for the baseline), `constant`, `value` (None: not modelled), `unit`, `meaning`, `source`.
    """
    rows: list[dict[str, Any]] = []
    for profile in profiles:
        for each in describe(profile):
            if each.name.startswith("cost."):
                row = {"device": profile.name, "constant": each.name, "value": each.value, "unit": each.unit}
                rows.append(row | {"meaning": each.meaning, "source": each.source})
    for name, annotation in get_type_hints(Baseline, include_extras=True).items():
        what = next(each for each in get_args(annotation) if isinstance(each, Constant))
        value = getattr(baseline or Baseline(), name)
        rows.append({"device": "digital", "constant": name, "value": value, **dataclasses.asdict(what)})
    return _pandas().DataFrame(rows, dtype=object)


def accelergy_adc_energy_pj(bits: int, rate_hz: float, technology_nm: float) -> float:
    """Energy of one conversion, by the regression over published ADCs of the Accelergy ADC plug-in."""
    figure_of_merit = min(213.7807 - 2.87190 * math.log(rate_hz), 128.3068 + 3.22052 * math.ceil(bits))
    scale = math.exp(26.0496 + 1.88004 * math.log(technology_nm) - 2.82913 * math.log(bits) - 1.47020)
    return 0.5 * 10 ** ((6.02 * bits + 1.76 - figure_of_merit) / 10) * scale


def accelergy_adc_area_um2(energy_pj: float, rate_hz: float, technology_nm: float) -> float:
    """Area of an ADC in um2, by the regression of the Accelergy ADC plug-in."""
    return math.exp(
        1.34619 + 0.99328 * math.log(technology_nm) + 0.18072 * math.log(rate_hz) + 0.29912 * math.log(energy_pj)
    )


def lossless_adc_bits(rows: int, input_bits: int, cell_bits: int) -> int:
    """Bits of an ADC that loses nothing of a column of `rows` cells, by ISAAC's rule."""
    bits = math.ceil(math.log2(rows)) + input_bits + cell_bits
    return bits if input_bits > 1 and cell_bits > 1 else bits - 1


@dataclass(frozen=True)
class Counts:
    """What one matrix on crossbars takes, and what one input row does there.

    Attributes:
        tiles: tiles as the emulation cuts the matrix of weights.
        arrays: physical arrays: all columns of cells side by side, in arrays of the tile's size.
        cells: cells in use.
        allocated: cells of all arrays.
        readings: readings of an array for one input row.
        dac_conversions: inputs fed to rows of arrays, for one input row.
        adc_conversions: outputs converted, for one input row.
        converted: outputs that one array converts after another reading, those in use.
        outputs: outputs of a whole array.
    """

    tiles: int
    arrays: int
    cells: int
    allocated: int
    readings: int
    dac_conversions: int
    adc_conversions: int
    converted: int
    outputs: int


def count(
    rows: int,
    columns: int,
    *,
    tile_rows: int = 0,
    tile_columns: int = 0,
    slices: int = 1,
    devices: int = 1,
    cell_devices: int = 1,
    extra_columns: int = 0,
    readings: int = 1,
    conversions: int | None = None,
    pair_conversions: int = 1,
) -> Counts:
    """Counts for a matrix of weights.

    Args:
        rows: rows K of the matrix.
        columns: columns N.
        tile_rows: rows of an array, 0 for one array as large as needed.
        tile_columns: columns of an array, 0 likewise.
        slices: cells that hold the bits of a weight.
        devices: 2 for a differential pair, else 1.
        cell_devices: 2 where both devices of a pair stand in one cell, else 1.
        extra_columns: columns besides the weights', such as a unit column; with the slices of a weight, but no pair.
        readings: of an array for one input row: parts that an input is fed in, times phases.
        conversions: of one output for one input row: `readings`, or fewer where readings are added up before one.
        pair_conversions: 2 if each device of a pair is converted by itself, else 1.
    """
    width = columns * slices * math.ceil(devices / cell_devices) + extra_columns * slices
    down = math.ceil(rows / tile_rows) if tile_rows else 1
    across = math.ceil(width / tile_columns) if tile_columns else 1
    converted = columns * slices * (pair_conversions if devices > 1 else 1) + extra_columns * slices
    outputs = math.ceil(converted * tile_columns / width) if tile_columns else converted
    return Counts(
        tiles=down * (math.ceil(columns / tile_columns) if tile_columns else 1),
        arrays=down * across,
        cells=rows * width,
        allocated=down * across * (tile_rows or rows) * (tile_columns or width),
        readings=readings,
        dac_conversions=rows * across * readings,
        adc_conversions=down * converted * (readings if conversions is None else conversions),
        # The columns of an array whose currents are subtracted pairwise have one conversion for two columns.
        converted=min(converted, outputs),
        outputs=outputs,
    )


def paper_terms(tokens: int, width: int, layers: int) -> int:
    """N (L d^2 + L^2 d + L d^2): digital operations by equation 8 of the study of language models on analog tiles.

    L `tokens`, d `width`, N `layers`. In proportion only: the equation counts one d x d product for all projections of
    a layer and one for its feed-forward part.
    """
    return layers * (2 * tokens * width**2 + tokens**2 * width)


def paper_ratio(
    tokens: int, width: int, layers: int, operation_pj: float, product_pj: float, conversion_pj: float
) -> float:
    """Digital by analog energy, equations 8 and 9 of the study of language models on analog tiles.

    Args:
        tokens: L.
        width: d.
        layers: N.
        operation_pj: energy of a digital multiply-accumulate.
        product_pj: E_MVM, energy of a layer's stored products for one token, of the 2 d^2 operations in equation 8.
        conversion_pj: E_ADC, energy of one conversion.
    """
    digital = paper_terms(tokens, width, layers) * operation_pj
    return digital / (layers * (tokens * product_pj + tokens**2 * conversion_pj))


def cost(
    model: "str | Path | onnx.ModelProto | EmulatedModel",
    *,
    device: "Device | None" = None,
    set: "Overrides | None" = None,
    map: "Sequence[Rule]" = (),
    only: str | None = None,
    exclude: str | None = None,
    tokens: Sequence[int] = (),
    tile_rows: Sequence[int] = (),
    costs_of: str | Path | Profile | None = None,
    baseline: "Baseline | Mapping[str, Any] | Iterable[str] | None" = None,
) -> "pd.DataFrame":
    """What every site of a model costs for one sample.

    Args:
        model: a rewritten model, or a plain one with `device`.
        device: a profile for a plain model.
        set: settings of the device; of a rewritten model those of its devices, tile sizes, bits and constants included.
        map: other devices for some sites, when rewriting.
        only: sites to count, when rewriting.
        exclude: sites to leave out, when rewriting.
        tokens: lengths of the sequence; else the model's own.
        tile_rows: heights of an array; else the device's.
        costs_of: a device whose constants stand in where a device has none.
        baseline: the digital baseline, or changes of the default one.

    Returns:
        One row for each site, length and height: see `cost_of_sites`, and `tokens` and `tile_rows` before.

    Raises:
        InputError: the model or a setting is wrong, or a size is open and `tokens` was not given.
    """
    from emu.rewriter import EmulatedModel, about_sites, read_manifest, rewrite

    if isinstance(model, str | Path) and not Path(model).is_file():
        raise InputError(f"There is no model file {model}.")
    name = str(model) if isinstance(model, str | Path) else "The model"
    manifest = model.manifest if isinstance(model, EmulatedModel) else read_manifest(model)
    if manifest is None:
        if device is None:
            raise InputError(f"{name} is not rewritten: give a device.")
        manifest = rewrite(model, device, set=set, map=map, only=only, exclude=exclude).manifest  # type: ignore[arg-type]
        set = None
    elif device is not None or map or only is not None or exclude is not None:
        raise InputError(f"{name} is already rewritten: give it without a device and a selection of sites.")
    profiles = {key: load_profile(each.profile, set) for key, each in manifest.devices.items()}
    lent: list[str] = []
    if costs_of is not None:
        profiles, lent = with_costs_of(profiles, load_profile(costs_of))
    digital = baseline if isinstance(baseline, Baseline) else Baseline.of(baseline)
    parts = []
    lengths: list[int | None] = [*tokens] or [None]
    heights: list[int | None] = [*tile_rows] or [None]
    for length, height in itertools.product(lengths, heights):
        changed = profiles
        if height is not None:
            changed = {key: load_profile(each, {"mapping.tile_rows": height}) for key, each in profiles.items()}
        sites = manifest.sites
        frame = cost_of_sites(sites, changed, tokens=length, baseline=digital, name=name)
        used = next(iter(changed.values())).mapping.tile_rows if len(changed) == 1 or height is not None else None
        frame.insert(0, "tile_rows", used)
        frame.insert(0, "tokens", length or _own_tokens(sites))
        parts.append(frame)
    frame = _pandas().concat(parts, ignore_index=True)
    frame.attrs = {"model": name, "device": ", ".join(profiles), **parts[0].attrs}
    frame.attrs["notes"] = [*about_sites(manifest), *lent, *frame.attrs["notes"]]
    return frame


def cost_of_sites(
    sites: Sequence[Site],
    profiles: Mapping[str, Profile],
    *,
    tokens: int | None = None,
    baseline: Baseline | None = None,
    name: str = "The model",
) -> "pd.DataFrame":
    """What sites of a manifest cost for one sample, one row for each.

    Args:
        sites: sites of a manifest.
        profiles: devices by the name that sites give.
        tokens: length of the sequence; None for the model's own.
        baseline: the digital accelerator to compare with.
        name: how to call the model in an error.

    Returns:
        Columns `site`, `node`, `layer`, `component`, `device`, `rows`, `columns` (of the matrix), `vectors` (input rows
        of one sample, for each matrix), `matrices`, `tiles`, `arrays`, `cells` in use and `allocated`, `adcs`,
        `dac_conversions`, `adc_conversions`, `adc_bits`, `lossless_bits` (of an ADC that loses nothing, by ISAAC's
        rule; NaN for analog cells), `macs`, `energy_array_uj` .. `energy_write_uj` and their sum `energy_uj`,
        `area_mm2`, `latency_us`, `programming_uj` (writing the stored weights once, in no sum), and the digital
        baseline: `digital_arithmetic_uj`, `digital_cache_uj`, `digital_fetch_uj` (stored weights from DRAM) and their
        sum `digital_uj`; `tops_per_w`, `tops_per_mm2` and `edp_uj_us` as in `total_cost`. A site that shares the array
        of another one has no tiles, cells and area of its own. NaN is what the device gives no constants for: a sum
        holds what is modelled, and is NaN without cells, DACs and ADCs. What was assumed and what is not modelled is in
        `attrs["notes"]`, the devices in `attrs["profiles"]`.
    """
    digital = baseline or Baseline()
    if tokens is not None and tokens < 1:
        raise InputError(f"{tokens} tokens were asked for: give at least one.")
    products = [site for site in sites if site.is_product]
    own = _own_tokens(products)
    notes: Notes = {}
    if len(products) < len(sites):
        notes["Stored tensors that feed no product are not counted."] = {}
    rows = []
    for site in products:
        profile = profiles[site.device]
        k, n, vectors, matrices = _geometry(site, tokens, own, name)
        rows.append(_row(site, profile, k, n, vectors, matrices, digital, notes))
    frame = _with_rates(_pandas().DataFrame(rows), "latency_us")
    said = [sentence.replace("{}", ", ".join(items)) for sentence, items in notes.items()]
    frame.attrs = {"notes": said, "baseline": digital, "profiles": dict(profiles)}
    return frame


def total_cost(frame: "pd.DataFrame", by: Sequence[str] = ()) -> "pd.DataFrame":
    """Sums of `cost` over sites.

    Args:
        frame: of `cost`.
        by: further columns to keep apart, such as `("component",)`.

    Returns:
        For each number of tokens, height of tiles and value of `by`: `sites` and the sums of the columns of `cost`;
        `slowest_us`, the largest latency of a site; `tops_per_w`, two operations for each multiply-accumulate by the
        energy; `tops_per_mm2`, the same by the area and the slowest site, which sets the pace of a pipeline;
        `edp_uj_us`, energy times latency; `ratio`, digital by analog energy, and `resident_ratio`, the same if the
        digital accelerator need not fetch the weights; and, without `by`, `paper_ratio`, by the published equations
        (NaN where layers differ).
    """
    frame = frame.copy()
    keys = [key for key in ("tokens", "tile_rows", *by) if key in frame]
    sums = ["tiles", "arrays", "cells", "allocated", "adcs", "dac_conversions", "adc_conversions", "macs"]
    sums += [*ENERGIES, "energy_uj", "area_mm2", "latency_us", "programming_uj", *DIGITAL, "digital_uj"]
    groups = frame.groupby(keys, sort=False, dropna=False) if keys else frame.groupby(lambda _: 0)
    total = groups[sums].agg(_sum)
    total.insert(0, "sites", groups.size())
    total["slowest_us"] = groups["latency_us"].max()
    total = _with_rates(total, "slowest_us")
    spent = total["energy_uj"].where(total["energy_uj"] > 0)
    total["ratio"] = total["digital_uj"] / spent
    total["resident_ratio"] = (total["digital_uj"] - total["digital_fetch_uj"]) / spent
    if not by:
        total["paper_ratio"] = [_by_equations(rows, frame.attrs["baseline"]) for _, rows in groups]
    total = total.reset_index(drop=not keys)
    total.attrs = frame.attrs
    return total


def compare_cost(frame: "pd.DataFrame", other: "pd.DataFrame") -> "pd.DataFrame":
    """Energy and area of one model on two devices.

    Args:
        frame: of `cost`.
        other: of `cost`, of the same model on what is compared with.

    Returns:
        One row for each component, one for `attention` (what makes Q, K and V, and both products), one for `attention
        and its output` (with the projection behind it) and one for `all`: `energy_uj`, `area_mm2` and `latency_us`, the
        same with `other_` before, and `energy_change`, `area_change` and `latency_change` from the other device to
        this one, as shares.
    """
    rows = []
    groups: dict[str, tuple[str, ...]] = {each: (each,) for each in frame["component"].unique()}
    groups |= {"attention": ATTENTION, "attention and its output": (*ATTENTION, "attention_output"), "all": ()}
    for label, inside in groups.items():
        row: dict[str, Any] = {"component": label}
        for prefix, each in (("", frame), ("other_", other)):
            chosen = each[each["component"].isin(inside)] if inside else each
            row |= {prefix + name: _sum(chosen[name]) for name in ("energy_uj", "area_mm2", "latency_us")}
        rows.append(row)
    compared = _pandas().DataFrame(rows)
    for name in ("energy_uj", "area_mm2", "latency_us"):
        before = compared[f"other_{name}"]
        compared[f"{name.split('_')[0]}_change"] = compared[name] / before.where(before > 0) - 1
    return compared


def peak(profile: Profile) -> dict[str, float]:
    """What a device reaches with all arrays full and busy, and what its makers publish.

    Returns:
        `tops_per_w` and `tops_per_mm2` of stored weights, two operations for each multiply-accumulate, as counted here;
        `published_tops_per_w` and `published_tops_per_mm2`. NaN where arrays have no size, constants are missing or
        nothing is published.
    """
    structure, given, none = profile.structure(), profile.cost, math.nan
    found = {"tops_per_w": none, "tops_per_mm2": none}
    found |= {f"published_{name}": (_given(given, f"published_{name}") or none) for name in list(found)}
    height, width = int(structure["tile_rows"]), int(structure["tile_columns"])
    slices, devices, extra, _ = _cells_of(profile, False, {})
    cells = slices * math.ceil(devices / (_given(given, "cell_devices") or 1))
    if height and width - extra * slices >= cells:
        columns = (width - extra * slices) // cells
        one = _product(profile, height, columns, vectors=1, matrices=1, written=False, notes={})
        operations = 2 * height * columns
        found["tops_per_w"] = operations / one["energy_uj"] * 1e-6
        found["tops_per_mm2"] = operations / one["latency_us"] / one["area_mm2"] * 1e-6
    return found


def _row(
    site: Site,
    profile: Profile,
    k: int,
    n: int,
    vectors: int,
    matrices: int,
    digital: Baseline,
    notes: Notes,
) -> dict[str, Any]:
    """Counts and costs of one site; energy in uJ, area in mm2, latency in us."""
    written = not site.is_stored
    product = _product(profile, k, n, vectors, matrices, written, notes)
    if site.array != site.index:  # a shared array is counted where it is first used
        product |= dict.fromkeys(("tiles", "arrays", "cells", "allocated", "adcs", "area_mm2", "programming_uj"), 0)
    arithmetic_pj, cache_pj, fetch_pj = _digital_pj(k, n, vectors * matrices, matrices, written, digital)
    return {
        "site": site.index,
        "node": site.node,
        "layer": site.layer,
        "component": site.component,
        "device": site.device,
        "rows": k,
        "columns": n,
        "vectors": vectors,
        "matrices": matrices,
        **product,
        "digital_arithmetic_uj": arithmetic_pj * 1e-6,
        "digital_cache_uj": cache_pj * 1e-6,
        "digital_fetch_uj": fetch_pj * 1e-6,
        "digital_uj": (arithmetic_pj + cache_pj + fetch_pj) * 1e-6,
    }


def _product(
    profile: Profile, k: int, n: int, vectors: int, matrices: int, written: bool, notes: Notes
) -> dict[str, Any]:
    """Counts and costs of `vectors` input rows with each of so many K x N matrices; NaN for what is not modelled."""
    structure, entries = profile.structure(), profile.entries()
    slices, devices, extra, cell_bits = _cells_of(profile, written, notes)
    dac_bits, adc_bits = _bits("dac", profile, notes), _bits("adc", profile, notes)
    tile_rows, tile_columns = int(structure["tile_rows"]), int(structure["tile_columns"])
    if not tile_rows or not tile_columns:
        notes[
            f"Device '{profile.name}' does not limit its tiles: each matrix is counted as one array "
            "(--set mapping.tile_rows=128 --set mapping.tile_columns=128 cuts it)."
        ] = {}
    it = profile.cost if profile.cost.model == "circuits" else CostCircuits(dac="pwm")
    serial_bits = 1 if it.dac == "bit_serial" else dac_bits - 1
    fed_bits = max(1, int(structure["dac_slice_bits"]) or serial_bits)
    counts = count(
        k,
        n,
        tile_rows=tile_rows,
        tile_columns=tile_columns,
        slices=slices,
        devices=devices,
        cell_devices=it.cell_devices,
        extra_columns=extra,
        readings=max(1, math.ceil((dac_bits - 1) / fed_bits)) * it.phases,
        conversions=it.phases if structure["dac_slice_sum"] == "analog" else None,
        pair_conversions=2 if structure["adc_pairs"] == "separate" else it.pair_conversions,
    )
    lossless = lossless_adc_bits(min(k, tile_rows or k), fed_bits, cell_bits) if cell_bits else math.nan
    runs = vectors * matrices
    shared = _or_nan(it.adc_columns or getattr(profile.adc, "columns", None)) if it.adc == "sar" else 1.0
    adcs = math.nan if math.isnan(shared) else counts.arrays * math.ceil(counts.outputs / shared)
    adc_pj, adc_um2 = _conversion(profile, adc_bits, notes)
    cell_us = _mean_conductance(entries, it)
    # V^2 G t in pJ: microsiemens times nanoseconds are 1e-15
    read_pj = _or_nan(it.read_voltage_v) ** 2 * cell_us * _or_nan(it.read_ns) * it.mean_input * 1e-3
    pulse_pj = _or_nan(it.write_voltage_v) ** 2 * cell_us * _or_nan(it.write_ns) * 1e-3
    write_pj = it.write_pulses * (pulse_pj if it.write_pj is None else it.write_pj)
    in_use = counts.cells * min(devices, it.cell_devices)  # devices
    pj = {
        "array": runs * counts.readings * in_use * read_pj,
        "dac": runs * counts.dac_conversions * _or_nan(it.dac_pj),
        "adc": runs * counts.adc_conversions * adc_pj,
        "shift_add": runs * counts.adc_conversions * _or_nan(it.shift_add_pj),
        "buffer": runs * (k + n) * dac_bits * _or_nan(it.buffer_pj_per_bit),
        "core": runs * counts.readings * counts.arrays * _or_nan(it.core_pj),
        "write": matrices * in_use * write_pj if written else 0.0,
    }
    areas = {
        "cells": counts.allocated * _or_nan(it.cell_area_um2),
        "DACs": counts.arrays * (tile_rows or k) * _or_nan(it.dac_area_um2),
        "ADCs": adcs * adc_um2,
        "all else in a core": counts.arrays * _or_nan(it.core_area_um2),
    }
    reading_ns = _reading_ns(it, min(shared, counts.converted))
    times = {"reading (cost.read_ns, cost.adc_ns)": vectors * counts.readings * reading_ns}
    if written:
        times["writing K and V (cost.write_ns)"] = min(k, tile_rows or k) * it.write_pulses * _or_nan(it.write_ns)
    _say_what_is_missing(profile, pj, areas, times, cell_us, notes)
    energy = {f"energy_{part}_uj": pj[part] * 1e-6 for part in PARTS}
    return {
        "tiles": matrices * counts.tiles,
        "arrays": matrices * counts.arrays,
        "cells": matrices * counts.cells,
        "allocated": matrices * counts.allocated,
        "adcs": matrices * adcs,
        "dac_conversions": runs * counts.dac_conversions,
        "adc_conversions": runs * counts.adc_conversions,
        "adc_bits": adc_bits,
        "lossless_bits": lossless,
        "macs": runs * k * n,
        **energy,
        "energy_uj": _modelled(pj, ("array", "dac", "adc")) * 1e-6,
        "area_mm2": _modelled(areas, ("cells", "ADCs")) * matrices * 1e-6,
        "latency_us": _modelled(times, tuple(times)[:1]) * 1e-3,
        "programming_uj": 0.0 if written else matrices * in_use * write_pj * 1e-6,
    }


def _reading_ns(it: CostCircuits, shared: float) -> float:
    """Time until the next reading of an array, with the conversions of one ADC."""
    read_ns, adc_ns = _or_nan(it.read_ns), _or_nan(it.adc_ns)
    if it.adc == "cco":
        return read_ns
    if it.adc == "ramp":
        return read_ns + adc_ns
    converting_ns = shared * adc_ns
    return math.nan if math.isnan(read_ns + converting_ns) else max(read_ns, converting_ns)


def _conversion(profile: Profile, bits: int, notes: Notes) -> tuple[float, float]:
    """Energy of one conversion in pJ and area of one ADC in um2; of a SAR also by Accelergy's regression."""
    it = profile.cost
    if it.model != "circuits":
        return math.nan, math.nan
    energy, area = _or_nan(it.adc_pj), _or_nan(it.adc_area_um2)
    if it.adc == "sar" and it.node_nm and it.adc_ns and (it.adc_pj is None or it.adc_area_um2 is None):
        notes[
            f"Device '{profile.name}': energy or area of its ADCs is estimated by Accelergy's regression over "
            f"published ones, {bits} bits in {it.node_nm:g} nm (cost.adc_pj, cost.adc_area_um2)."
        ] = {}
        energy = accelergy_adc_energy_pj(bits, 1e9 / it.adc_ns, it.node_nm) if it.adc_pj is None else energy
        area = accelergy_adc_area_um2(energy, 1e9 / it.adc_ns, it.node_nm) if it.adc_area_um2 is None else area
    return energy, area


def _mean_conductance(entries: Mapping[str, float], it: CostCircuits) -> float:
    """Of one device, in uS; NaN where the device has no conductances."""
    if it.conductance_us is not None:
        return it.conductance_us
    low, high = entries.get("mapping.g_min_us", math.nan), entries.get("mapping.g_max_us", math.nan)
    return low + it.mean_conductance * (high - low)


def _say_what_is_missing(
    profile: Profile,
    pj: Mapping[str, float],
    areas: Mapping[str, float],
    times: Mapping[str, float],
    cell_us: float,
    notes: Notes,
) -> None:
    """Notes what the constants of a device do not give, and which settings would."""
    if profile.cost.model != "circuits":
        notes[
            f"Not modelled: energy, area and latency of device '{profile.name}', which has no constants ([cost]). Take "
            "another device's (--costs-of isaac), or set its own (--set cost.adc_pj=2; 'emu devices isaac' lists them)."
        ] = {}
        return
    of = f"of device '{profile.name}'"
    missing = [f"{PART_LABELS[part]} ({PARTS[part]})" for part in PARTS if math.isnan(pj[part])]
    if math.isnan(cell_us) and math.isnan(pj["array"]):
        missing[0] = f"{PART_LABELS['array']} (cost.conductance_us: the device has no conductances)"
    if missing:
        notes.setdefault(f"Not modelled, so in no sum: energy of {{}} {of}.", {}).update(dict.fromkeys(missing))
    if math.isnan(_modelled(pj, ("array", "dac", "adc"))):
        notes[f"There is no sum of the energy {of} without cells, DACs and ADCs."] = {}
    missing = [f"{part} ({AREAS[part]})" for part in AREAS if math.isnan(areas[part])]
    if missing:
        notes.setdefault(f"Not modelled, so in no sum: area of {{}} {of}.", {}).update(dict.fromkeys(missing))
    if math.isnan(_modelled(areas, ("cells", "ADCs"))):
        notes[f"There is no sum of the area {of} without cells and ADCs."] = {}
    for part, ns in times.items():
        if math.isnan(ns):
            notes.setdefault(f"Not modelled, so in no sum: time of {{}} {of}.", {})[part] = None


def _modelled(parts: Mapping[str, float], needed: Sequence[str]) -> float:
    """The sum of what is modelled, NaN if one of the needed parts is not."""
    if any(math.isnan(parts[part]) for part in needed):
        return math.nan
    return sum(value for value in parts.values() if not math.isnan(value))


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _given(section: Any, name: str) -> Any:
    """A constant of a [cost] that may have none."""
    return getattr(section, name, None)


def _sum(values: "pd.Series") -> float:
    """The sum, NaN where any part is not modelled."""
    return float(values.sum(skipna=False)) if values.dtype.kind == "f" else int(values.sum())


def _with_rates(frame: "pd.DataFrame", pace: str) -> "pd.DataFrame":
    """With operations by energy, operations by area and time of the `pace`, and energy times delay."""
    operations = 2 * frame["macs"] * 1e-6
    frame["tops_per_w"] = operations / frame["energy_uj"].where(frame["energy_uj"] > 0)
    frame["tops_per_mm2"] = operations / (frame[pace] * frame["area_mm2"].where(frame["area_mm2"] > 0))
    frame["edp_uj_us"] = frame["energy_uj"] * frame["latency_us"]
    return frame


def with_costs_of(profiles: Mapping[str, Profile], lender: Profile) -> tuple[dict[str, Profile], list[str]]:
    """The devices with another's constants where they have none, and a note for each that takes some."""
    if lender.cost.model != "circuits":
        raise InputError(f"Device '{lender.name}' has no [cost] to lend: 'emu devices NAME' shows who has.")
    # What is published of the lender is not of them, and an array reads as it does with its own conductances.
    lent = _constants_of(lender) | {"conductance_us": _mean_conductance(lender.entries(), lender.cost)}
    lent = {name: value for name, value in lent.items() if not name.startswith("published")}
    found, notes = {}, []
    for key, each in profiles.items():
        own = _constants_of(each)
        taken = lent.keys() - own.keys() - ({"conductance_us"} if "mapping.g_max_us" in each.entries() else set[str]())
        merged = CostCircuits.model_validate({**{name: lent[name] for name in lent if name in taken}, **own})
        found[key] = each.model_copy(update={"cost": merged})
        if taken:
            some = "constants" if own else "all constants"
            notes.append(f"Device '{each.name}' takes {some} that it does not have from '{lender.name}'.")
    return found, notes


def _constants_of(profile: Profile) -> dict[str, Any]:
    """The constants that a profile gives, but for their sources."""
    return (
        {} if profile.cost.model != "circuits" else profile.cost.model_dump(exclude_defaults=True, exclude={"sources"})
    )


def _digital_pj(
    k: int, n: int, runs: int, matrices: int, written: bool, digital: Baseline
) -> tuple[float, float, float]:
    """Arithmetic, cache and fetched weights of an accelerator that moves each number once."""
    arithmetic = runs * k * n * (digital.digital_multiply_pj + digital.digital_add_pj)
    numbers = matrices * k * n * digital.digital_bits
    cached = runs * (k + n) * digital.digital_bits + (numbers if written else 0)
    fetched = 0.0 if written else numbers * digital.digital_dram_pj_per_bit
    return arithmetic, cached * digital.digital_cache_pj_per_bit, fetched


def _cells_of(profile: Profile, written: bool, notes: Notes) -> tuple[int, int, int, int]:
    """Cells for the bits of a value, devices of each, columns besides the values', and bits of a cell (0: analog)."""
    structure, entries = profile.structure(), profile.entries()
    encoding, slice_bits = str(structure["encoding"]), int(structure["slice_bits"])
    if written and structure["write"] == "clipformer" and entries.get("write.bits"):
        # What the transform leaves of the range needs fewer bits: 6 of 8 where it clips at a quarter.
        lowest = entries["mapping.g_min_us"] / entries["mapping.g_max_us"]
        alpha, beta = entries.get("write.alpha", 0.0), entries.get("write.beta", 1.0)
        alpha = min(alpha, entries.get("write.alpha_value", alpha))  # cells for the operand that needs more
        beta = max(beta, entries.get("write.beta_value", beta))
        top = max(min(1 - alpha * lowest, beta) - lowest, 0) / (1 - lowest)
        highest = round(top * (2 ** int(entries["write.bits"]) - 1))
        return math.ceil(max(1, highest.bit_length()) / WRITTEN_CELL_BITS), 2, 0, WRITTEN_CELL_BITS
    # Pairs hold the sign in their two devices. What is written at run time is always a pair.
    has_pair = written or encoding != "offset"
    bits = int(structure["weight_bits"]) - (1 if has_pair else 0)
    slices = math.ceil(bits / slice_bits) if slice_bits else 1
    if encoding == "weight" and not written:
        cells = _given(profile.cost, "weight_cells")
        if cells is None:
            notes[
                f"Device '{profile.name}' does not say how a weight becomes conductances: counted as a pair of cells "
                "(cost.weight_cells)."
            ] = {}
        return (1, 2, 0, 0) if cells is None else (cells, 1, 0, 0)
    unit_column = not written and encoding == "offset" and structure["offset_correction"] == "unit_column"
    return slices, 2 if has_pair else 1, int(unit_column), slice_bits


def _bits(converter: str, profile: Profile, notes: Notes) -> int:
    """Resolution in bits of the DACs or ADCs: the chip's, else the device's (of a number of steps the nearest)."""
    entries = profile.entries()
    steps, bits = entries.get(f"{converter}.steps", 0), entries.get(f"{converter}.bits", 0)
    emulated = 0
    if profile.structure()[converter] != "none" and (steps or bits):
        emulated = int(bits) or max(1, round(math.log2(steps)))
    chip = int(_given(profile.cost, f"{converter}_bits") or 0)
    name = converter.upper()
    if chip and emulated and chip != emulated:
        notes[
            f"Device '{profile.name}' emulates {name}s of {emulated} bits; those of the chip, of {chip} bits, are "
            f"counted (cost.{converter}_bits)."
        ] = {}
    if not chip and not emulated:
        exact = f"Device '{profile.name}' has an exact {name}"
        notes[f"{exact}: counted with {EXACT_BITS} bits (cost.{converter}_bits)."] = {}
    return chip or emulated or EXACT_BITS


def _own_tokens(sites: Sequence[Site]) -> int | None:
    """Tokens of one sample, None where the model leaves them open."""
    for site in sites:
        if site.component in ("query", "query_key_value") and site.macs:
            return site.macs // (site.macs_per_row or 1)
    return None


def _geometry(site: Site, tokens: int | None, own: int | None, name: str) -> tuple[int, int, int, int]:
    """Rows and columns of the matrix, input rows of a sample for each matrix, and matrices."""
    k, n = site.shape
    written = not site.is_stored
    where = f"{name}: site {site.index} '{site.node}'"
    if site.macs is None or k is None or n is None:
        if tokens is None:
            raise InputError(f"{where} depends on the number of tokens, which the model leaves open: give tokens.")
        matrices = (site.heads or 1) if written else site.stack
        return tokens if k is None else k, tokens if n is None else n, tokens, matrices
    runs = site.macs // site.macs_per_row if site.macs_per_row else 0
    if site.stack > 1:
        return k, n, runs // site.stack, site.stack
    keys = {"attention_scores": n, "attention_context": k}.get(site.component)
    if own is None or tokens is None or tokens == own:
        matrices = (site.heads or 1) if written else 1
        if written and keys and own and keys != own and runs % keys == 0:
            matrices = runs // keys  # attention within windows
        return k, n, runs // matrices, matrices
    if site.layer is None:  # patches count with the tokens; pooler and classifier see a chosen token
        return k, n, runs + tokens - own if runs > max(1, own - 3) else runs, 1
    if runs % own or (keys is not None and keys != own):
        raise InputError(
            f"{where} has {keys or runs} tokens where others have {own}: the number of tokens of such a model cannot "
            "be changed."
        )
    if not written:
        return k, n, runs // own * tokens, 1
    columns = tokens if site.component == "attention_scores" else n
    return tokens if site.component == "attention_context" else k, columns, tokens, runs // own


def _by_equations(rows: "pd.DataFrame", digital: Baseline) -> float:
    """`paper_ratio` for the layers of a model, NaN where they differ."""
    inside = rows[rows["layer"].notna()]
    queries = inside[inside["component"].isin(["query", "query_key_value"])]
    converted = rows["adc_conversions"].sum()
    is_alike = queries["rows"].nunique() == 1 and queries["vectors"].nunique() == 1
    if not is_alike or not converted or math.isnan(_sum(rows["energy_adc_uj"])):
        return math.nan
    tokens, width, layers = int(queries["vectors"].iloc[0]), int(queries["rows"].iloc[0]), inside["layer"].nunique()
    stored = inside[~inside["component"].isin(["attention_scores", "attention_context"])]
    # Equation 8 counts 2 d^2 operations for the stored products of a layer and token, which are more: in proportion.
    share = 2 * width**2 * tokens * layers / stored["macs"].sum()
    product_pj = share * _sum(stored["energy_uj"]) * 1e6 / (tokens * layers)
    conversion_pj = rows["energy_adc_uj"].sum() * 1e6 / converted
    operation_pj = digital.digital_multiply_pj + digital.digital_add_pj
    return paper_ratio(tokens, width, layers, operation_pj, product_pj, conversion_pj)


def _pairs(changes: "Mapping[str, Any] | Iterable[str] | None") -> list[tuple[str, Any]]:
    if changes is None:
        return []
    if isinstance(changes, Mapping):
        return list(changes.items())
    pairs = []
    for text in changes:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"The constant '{text}' cannot be read: write it as digital_bits=32.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _checked(name: str, value: Any, kind: Any) -> Any:
    """A constant of its kind and in its range."""
    least = 1 if kind is int else 0
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number < math.inf or (kind is int and number != int(number)):
        whole = "whole " if kind is int else ""
        raise InputError(f"The constant {name} is '{value}': expected a {whole}number, at least {least}.")
    return int(number) if kind is int else number


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        from emu.libraries import missing

        raise missing(error) from None
    return pandas
