"""What a model costs on a device: tiles, cells, conversions, energy, area and latency, counted from its sites.

Counts follow from the model and the device; energy, area and time follow from the counts by the constants of a
`CostModel`, each of which names its source and can be changed. `docs/cost.md` says what is counted and what is not.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

from emu.analysis.figures import COLORS, GREY, below_axes, grid, line_styles
from emu.contract.site import Site
from emu.device import Profile, load_profile
from emu.errors import InputError

if TYPE_CHECKING:
    import onnx
    import pandas as pd

    from emu.device.loading import Overrides
    from emu.rewriter import Device, EmulatedModel, Rule

ISAAC = "ISAAC (Shafiee et al. 2016, 32 nm) as quoted by PUMA, MNSIM and hwcomponents-library"
HOROWITZ = "Horowitz 2014, 45 nm"
ASSUMED = "assumed"
PARTS = ("array", "dac", "sample_hold", "adc", "shift_add", "buffer", "write")
ENERGIES = tuple(f"energy_{part}_uj" for part in PARTS)
DIGITAL = ("digital_arithmetic_uj", "digital_memory_uj")

AdcModel = Literal["accelergy", "isaac", "spikesim", "neurosim_22_lstp", "neurosim_32_lp", "neurosim_32_hp"]


@dataclass(frozen=True)
class Constant:
    """What a constant of a `CostModel` means: its unit, and where its value comes from."""

    unit: str
    meaning: str
    source: str


@dataclass(frozen=True)
class CostModel:
    """The constants that turn counts into energy, area and time; `constants` lists them with units and sources.

    A constant that is None follows from others or from the device, as its meaning says.
    """

    adc_model: Annotated[AdcModel, Constant("", "where energy and area of an ADC come from", "docs/cost.md")] = (
        "accelergy"
    )
    adc_energy_pj: Annotated[float | None, Constant("pJ", "one conversion; else by adc_model", "")] = None
    adc_area_um2: Annotated[float | None, Constant("um2", "one ADC; else by adc_model", "")] = None
    adc_bits: Annotated[int | None, Constant("bits", "resolution of an ADC; else the device's", "")] = None
    adc_rate_hz: Annotated[float, Constant("1/s", "conversions of one ADC in a second", ISAAC)] = 1.28e9
    adc_columns: Annotated[
        int | None, Constant("columns", "columns that share one ADC; else the device's adc.columns, or 128", ISAAC)
    ] = None
    technology_nm: Annotated[float, Constant("nm", "node of the ADC, for adc_model accelergy", ISAAC)] = 32.0
    converter_bits: Annotated[
        int, Constant("bits", "resolution of a DAC or an ADC that the device leaves exact", ASSUMED)
    ] = 8
    read_resistance_ohm: Annotated[
        float, Constant("ohm", "of a column, for adc_model neurosim_*", "NeuroSim V1.4, resistance of the on state")
    ] = 1e5
    dac_energy_pj: Annotated[float, Constant("pJ", "one bit by a DAC: 4 mW / 1024 for 100 ns", ISAAC)] = 0.390625
    dac_area_um2: Annotated[float, Constant("um2", "the DAC of one row of one array", ISAAC)] = 0.166
    array_energy_pj: Annotated[float, Constant("pJ", "one reading of 128 x 128 cells: 0.3 mW for 100 ns", ISAAC)] = 30.0
    array_area_um2: Annotated[float, Constant("um2", "128 x 128 cells", ISAAC)] = 25.0
    read_ns: Annotated[float, Constant("ns", "one reading of an array", ISAAC)] = 100.0
    sample_hold_energy_pj: Annotated[float, Constant("pJ", "one output held: 10 uW / 1024 for 100 ns", ISAAC)] = (
        9.765625e-4
    )
    shift_add_energy_pj: Annotated[float, Constant("pJ", "one conversion added to its sum", ISAAC)] = 0.021
    shift_add_area_um2: Annotated[float, Constant("um2", "one shift-and-add unit, one for each ADC", ISAAC)] = 60.0
    buffer_energy_pj_per_bit: Annotated[
        float, Constant("pJ", "one bit from or to an eDRAM of 64 KB: 20.45 pJ for 256", ISAAC)
    ] = 20.45 / 256
    bus_energy_pj_per_bit: Annotated[float, Constant("pJ", "one bit over the bus", ISAAC)] = 0.054
    conversions_per_pair: Annotated[
        int,
        Constant(
            "1", "1: the currents of a pair are subtracted, then converted; 2: each by itself", "CrossSim; option"
        ),
    ] = 1
    devices_per_weight: Annotated[
        int, Constant("1", "devices of a weight where the device has no conductances", ASSUMED)
    ] = 2
    write_voltage_v: Annotated[float, Constant("V", "of a write pulse", "NeuroSim V1.4")] = 2.0
    write_pulse_ns: Annotated[float, Constant("ns", "length of a write pulse", "MNSIM 2.0")] = 10.0
    write_pulses: Annotated[float, Constant("1", "pulses that write a cell", ASSUMED)] = 1.0
    write_conductance_us: Annotated[
        float | None,
        Constant("uS", "of a cell being written; else the device's g_max, or 10", "the ClipFormer paper: 100 kOhm"),
    ] = None
    write_cell_bits: Annotated[
        int, Constant("bits", "in one cell of an operand that clipformer writes", "the ClipFormer paper")
    ] = 2
    digital_multiply_pj: Annotated[float, Constant("pJ", "8-bit multiplication (32-bit float: 3.7)", HOROWITZ)] = 0.2
    digital_add_pj: Annotated[float, Constant("pJ", "32-bit addition (32-bit float: 0.9)", HOROWITZ)] = 0.1
    digital_bits: Annotated[int, Constant("bits", "of a number in the digital baseline", ASSUMED)] = 8
    digital_dram_pj_per_bit: Annotated[float, Constant("pJ", "one bit from DRAM: 640 pJ for 32", HOROWITZ)] = 20.0
    digital_cache_pj_per_bit: Annotated[float, Constant("pJ", "one bit from an 8 KB cache: 10 pJ for 64", HOROWITZ)] = (
        10 / 64
    )

    @classmethod
    def of(cls, changes: "Mapping[str, Any] | Iterable[str] | None" = None) -> "CostModel":
        """The constants with some of them changed: `{"adc_energy_pj": 2}` or strings `adc_energy_pj=2`.

        Raises:
            InputError: an unknown constant, or a value that it cannot have.
        """
        kinds = get_type_hints(cls)
        values: dict[str, Any] = {}
        for name, value in _pairs(changes):
            if name not in kinds:
                raise InputError(f"The constant '{name}' is not known: there are {', '.join(kinds)}.")
            values[name] = _checked(name, value, kinds[name])
        return cls(**values)

    def conversion(self, bits: int) -> tuple[float, float]:
        """Energy of one conversion in pJ, and area of one ADC in um2.

        Raises:
            InputError: bits out of the range of the formulas.
        """
        if not 1 <= bits <= 16:
            raise InputError(f"An ADC of {bits} bits was asked for: the formulas hold for 1 to 16.")
        energy, area = self.adc_energy_pj, self.adc_area_um2
        if self.adc_model == "isaac":
            default = (1.5625, 1200.0)  # 2 mW at 1.28 GS/s, 8 bits
        elif self.adc_model == "spikesim":
            default = (2.03084, 693.6)
        else:
            if self.adc_model == "accelergy":
                found = accelergy_adc_energy_pj(bits, self.adc_rate_hz, self.technology_nm)
            else:
                variant = self.adc_model.removeprefix("neurosim_")
                found = neurosim_adc_energy_pj(2**bits, self.read_resistance_ohm, variant)
            default = (found, accelergy_adc_area_um2(found, self.adc_rate_hz, self.technology_nm))
        return default[0] if energy is None else energy, default[1] if area is None else area


def constants(model: CostModel | None = None) -> "pd.DataFrame":
    """The constants of a cost model: `constant`, `value`, `unit`, `meaning`, `source`."""
    model = model or CostModel()
    rows = []
    for name, annotation in get_type_hints(CostModel, include_extras=True).items():
        what = next(each for each in get_args(annotation) if isinstance(each, Constant))
        rows.append({"constant": name, "value": getattr(model, name), **dataclasses.asdict(what)})
    return _pandas().DataFrame(rows)


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


_NEUROSIM = {  # microwatt for a doubling of the levels, microwatt, watt, per decade of resistance
    "22_lstp": (0.538, 4.3753, 0.072341, 2.303),
    "32_lp": (1.1294, 8.8998, 0.079449, 2.297),
    "32_hp": (1.0157, 7.6286, 0.083709, 2.313),
}


def neurosim_adc_power_uw(levels: int, resistance_ohm: float, variant: str = "22_lstp") -> float:
    """Power of a successive-approximation ADC in uW by NeuroSim's fit (SarADC); `resistance_ohm` of the column."""
    slope, base, column, decade = _NEUROSIM[variant]
    return slope * math.log2(levels) + base + column * 1e6 * math.exp(-decade * math.log10(resistance_ohm))


def neurosim_adc_energy_pj(levels: int, resistance_ohm: float, variant: str = "22_lstp") -> float:
    """Energy of one conversion by NeuroSim's fit: its power for log2(levels) + 1 ns."""
    return neurosim_adc_power_uw(levels, resistance_ohm, variant) * (math.log2(levels) + 1) * 1e-3


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
        cells: devices in use.
        allocated: cells of all arrays.
        input_slices: readings of an array for one input row.
        dac_conversions: inputs fed to rows of arrays, for one input row.
        adc_conversions: outputs converted, for one input row.
        adcs: number of ADCs.
        shared: columns that one of them converts, one after another.
    """

    tiles: int
    arrays: int
    cells: int
    allocated: int
    input_slices: int
    dac_conversions: int
    adc_conversions: int
    adcs: int
    shared: int


def count(
    rows: int,
    columns: int,
    *,
    tile_rows: int = 0,
    tile_columns: int = 0,
    slices: int = 1,
    devices: int = 1,
    extra_columns: int = 0,
    input_slices: int = 1,
    conversions_per_pair: int = 1,
    adc_columns: int = 128,
) -> Counts:
    """Counts for a matrix of weights.

    Args:
        rows: rows K of the matrix.
        columns: columns N.
        tile_rows: rows of an array, 0 for one array as large as needed.
        tile_columns: columns of an array, 0 likewise.
        slices: cells that hold the bits of a weight.
        devices: 2 for a differential pair, else 1.
        extra_columns: columns besides the weights', such as a unit column; with the slices of a weight, but no pair.
        input_slices: parts that an input is fed in.
        conversions_per_pair: 2 if each device of a pair is converted by itself, else 1.
        adc_columns: columns that share one ADC.
    """
    width = columns * slices * devices + extra_columns * slices
    down = math.ceil(rows / tile_rows) if tile_rows else 1
    across = math.ceil(width / tile_columns) if tile_columns else 1
    converted = columns * slices * (conversions_per_pair if devices > 1 else 1) + extra_columns * slices
    # The columns of an array whose currents are subtracted pairwise have one conversion for two columns.
    in_array = math.ceil(min(converted, converted * tile_columns / width if tile_columns else converted))
    per_array = math.ceil(in_array / adc_columns)
    return Counts(
        tiles=down * (math.ceil(columns / tile_columns) if tile_columns else 1),
        arrays=down * across,
        cells=rows * width,
        allocated=down * across * (tile_rows or rows) * (tile_columns or width),
        input_slices=input_slices,
        dac_conversions=rows * across * input_slices,
        adc_conversions=down * converted * input_slices,
        adcs=down * across * per_array,
        shared=min(adc_columns, in_array),
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
    constants: "CostModel | Mapping[str, Any] | Iterable[str] | None" = None,
) -> "pd.DataFrame":
    """What every site of a model costs for one sample.

    Args:
        model: a rewritten model, or a plain one with `device`.
        device: a profile for a plain model.
        set: settings of the device; of a rewritten model those of its devices, tile sizes and bits included.
        map: other devices for some sites, when rewriting.
        only: sites to count, when rewriting.
        exclude: sites to leave out, when rewriting.
        tokens: lengths of the sequence; else the model's own.
        tile_rows: heights of an array; else the device's.
        constants: a cost model, or changes of the default one.

    Returns:
        One row for each site, length and height: see `cost_of_sites`, and `tokens` and `tile_rows` before.

    Raises:
        InputError: the model or a setting is wrong, or a size is open and `tokens` was not given.
    """
    from emu.rewriter import EmulatedModel, read_manifest, rewrite

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
    costs = constants if isinstance(constants, CostModel) else CostModel.of(constants)
    parts = []
    lengths: list[int | None] = [*tokens] or [None]
    heights: list[int | None] = [*tile_rows] or [None]
    for length, height in itertools.product(lengths, heights):
        changed = profiles
        if height is not None:
            changed = {key: load_profile(each, {"mapping.tile_rows": height}) for key, each in profiles.items()}
        sites = manifest.sites
        frame = cost_of_sites(sites, changed, tokens=length, constants=costs, name=name)
        used = next(iter(changed.values())).mapping.tile_rows if len(changed) == 1 or height is not None else None
        frame.insert(0, "tile_rows", used)
        frame.insert(0, "tokens", length or _own_tokens(sites))
        parts.append(frame)
    frame = _pandas().concat(parts, ignore_index=True)
    frame.attrs = {"model": name, "device": ", ".join(profiles), **parts[0].attrs}
    return frame


def cost_of_sites(
    sites: Sequence[Site],
    profiles: Mapping[str, Profile],
    *,
    tokens: int | None = None,
    constants: CostModel | None = None,
    name: str = "The model",
) -> "pd.DataFrame":
    """What sites of a manifest cost for one sample, one row for each.

    Args:
        sites: sites of a manifest.
        profiles: devices by the name that sites give.
        tokens: length of the sequence; None for the model's own.
        constants: of the costs.
        name: how to call the model in an error.

    Returns:
        Columns `site`, `node`, `layer`, `component`, `rows`, `columns` (of the matrix), `vectors` (input rows of one
        sample, for each matrix), `matrices`, `tiles`, `arrays`, `cells`, `adcs`, `dac_conversions`, `adc_conversions`,
        `adc_bits`, `lossless_bits` (of an ADC that loses nothing, by ISAAC's rule; NaN for analog cells), `macs`,
        `energy_array_uj` .. `energy_write_uj` and their sum `energy_uj`, `area_mm2`, `latency_us`, and the digital
        baseline: `digital_arithmetic_uj`, `digital_memory_uj` and their sum `digital_uj`. A site that shares the array
        of another one has no tiles, cells and area of its own. What was assumed is in `attrs["notes"]`.
    """
    costs = constants or CostModel()
    if tokens is not None and tokens < 1:
        raise InputError(f"{tokens} tokens were asked for: give at least one.")
    products = [site for site in sites if site.is_product]
    own = _own_tokens(products)
    notes: dict[str, None] = {}
    if len(products) < len(sites):
        notes["Stored tensors that feed no product are not counted."] = None
    rows = []
    for site in products:
        profile = profiles[site.device]
        k, n, vectors, matrices = _geometry(site, tokens, own, name)
        rows.append(_row(site, profile, k, n, vectors, matrices, costs, notes))
    frame = _pandas().DataFrame(rows)
    frame.attrs = {"notes": list(notes), "constants": costs}
    return frame


def total_cost(frame: "pd.DataFrame", by: Sequence[str] = ()) -> "pd.DataFrame":
    """Sums of `cost` over sites.

    Args:
        frame: of `cost`.
        by: further columns to keep apart, such as `("component",)`.

    Returns:
        For each number of tokens, height of tiles and value of `by`: `sites` and the sums of the columns of `cost`;
        `slowest_us`, the largest latency of a site; `ratio`, digital by analog energy; and, without `by`,
        `paper_ratio`, the same by the published equations (NaN where layers differ).
    """
    frame = frame.copy()
    keys = [key for key in ("tokens", "tile_rows", *by) if key in frame]
    sums = ["tiles", "arrays", "cells", "adcs", "dac_conversions", "adc_conversions", "macs"]
    sums += [*ENERGIES, "energy_uj", "area_mm2", "latency_us", *DIGITAL, "digital_uj"]
    groups = frame.groupby(keys, sort=False, dropna=False) if keys else frame.groupby(lambda _: 0)
    total = groups[sums].sum()
    total.insert(0, "sites", groups.size())
    total["slowest_us"] = groups["latency_us"].max()
    total["ratio"] = total["digital_uj"] / total["energy_uj"].where(total["energy_uj"] > 0)
    if not by:
        total["paper_ratio"] = [_published(rows, frame.attrs["constants"]) for _, rows in groups]
    total = total.reset_index(drop=not keys)
    total.attrs = frame.attrs
    return total


def draw_cost(frame: "pd.DataFrame", axes: Any) -> None:
    """Energy of one sample by component and part, or against what was varied, with the digital baseline.

    Args:
        frame: of `cost`.
        axes: matplotlib Axes.
    """
    total = total_cost(frame)
    varied = [key for key in ("tokens", "tile_rows") if key in frame and frame[key].nunique() > 1]
    if not varied:
        _draw_components(frame, axes)
        return
    x, *others = varied
    groups = list(total.groupby(others[0])) if others else [(None, total)]
    for (color, line), (value, rows) in zip(line_styles(len(groups)), groups, strict=True):
        label = "on crossbars" if value is None else f"on crossbars, {value} rows"
        axes.plot(rows[x], rows["energy_uj"], line, marker="o", markersize=3.5, color=color, label=label)
    first = total.drop_duplicates(x)
    axes.plot(first[x], first["digital_uj"], "--", color=GREY, label="digital, weights from DRAM")
    axes.plot(first[x], first["digital_arithmetic_uj"], ":", color=GREY, label="digital, arithmetic alone")
    axes.set_xlabel({"tokens": "tokens", "tile_rows": "rows of an array"}[x])
    axes.set_ylabel("energy of one sample (uJ)")
    if first[x].min() > 0:
        axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(first[x], [str(value) for value in first[x]])
    axes.minorticks_off()
    axes.set_title("Energy on crossbars and digital, counted")
    grid(axes)
    axes.legend(frameon=False)


_PART_LABELS = {
    "array": "array",
    "dac": "DAC",
    "sample_hold": "sample and hold",
    "adc": "ADC",
    "shift_add": "shift and add",
    "buffer": "buffers",
    "write": "writing K and V",
}


def _draw_components(frame: "pd.DataFrame", axes: Any) -> None:
    total = total_cost(frame, ("component",))
    left = 0.0 * total["energy_uj"]
    for part, color in zip(PARTS, COLORS, strict=True):
        energy = total[f"energy_{part}_uj"]
        if energy.sum() > 0.001 * total["energy_uj"].sum():
            axes.barh(total["component"], energy, left=left, color=color, label=_PART_LABELS[part])
        left = left + energy
    marks = {"color": "black", "markersize": 14, "markeredgewidth": 1.5}
    axes.plot(total["digital_arithmetic_uj"], total["component"], "|", label="digital, arithmetic alone", **marks)
    # With its weights from memory it is beyond the axis: as numbers.
    beside = {"xycoords": ("axes fraction", "data"), "annotation_clip": False, "va": "center", "fontsize": 8}
    for place, energy in enumerate(total["digital_uj"]):
        axes.annotate(f"{energy:.3g}", (1.03, place), **beside)
    axes.annotate("digital, with\nDRAM (uJ)", (1.03, -1), **beside)
    axes.set_ylim(len(total) - 0.4, -0.6)
    axes.set_xlabel("energy of one sample (uJ)")
    axes.set_title("Energy on crossbars by component, counted")
    grid(axes)
    below_axes(axes, ncols=4)


def _row(
    site: Site,
    profile: Profile,
    k: int,
    n: int,
    vectors: int,
    matrices: int,
    costs: CostModel,
    notes: dict[str, None],
) -> dict[str, Any]:
    """Counts and costs of one site; energy in uJ, area in mm2, latency in us."""
    structure, entries = profile.structure(), profile.entries()
    written = not site.is_stored
    slices, devices, extra, cell_bits = _cells_of(structure, entries, written, costs, notes, profile.name)
    dac_bits = _bits("dac", structure, entries, costs, notes, profile.name)
    adc_bits = costs.adc_bits or _bits("adc", structure, entries, costs, notes, profile.name)
    slice_bits = int(structure["dac_slice_bits"])
    if not int(structure["tile_rows"]) or not int(structure["tile_columns"]):
        notes[
            f"Device '{profile.name}' does not limit its tiles: each matrix is counted as one array "
            "(--set mapping.tile_rows=128 --set mapping.tile_columns=128 cuts it)."
        ] = None
    counts = count(
        k,
        n,
        tile_rows=int(structure["tile_rows"]),
        tile_columns=int(structure["tile_columns"]),
        slices=slices,
        devices=devices,
        extra_columns=extra,
        input_slices=math.ceil((dac_bits - 1) / slice_bits) if slice_bits else 1,
        conversions_per_pair=costs.conversions_per_pair,
        adc_columns=costs.adc_columns or getattr(profile.adc, "columns", None) or 128,
    )
    lossless = math.nan
    if cell_bits:
        fed_bits = slice_bits or dac_bits - 1
        lossless = lossless_adc_bits(min(k, int(structure["tile_rows"]) or k), fed_bits, cell_bits)
    runs = vectors * matrices
    conversion_pj, adc_um2 = costs.conversion(adc_bits)
    converted = runs * counts.adc_conversions
    moved_bits = runs * (k + n) * dac_bits
    pj = {
        "array": runs * counts.input_slices * counts.cells * costs.array_energy_pj / 128**2,
        "dac": runs * counts.dac_conversions * (slice_bits or dac_bits) * costs.dac_energy_pj,
        "sample_hold": converted * costs.sample_hold_energy_pj,
        "adc": converted * conversion_pj,
        "shift_add": converted * costs.shift_add_energy_pj,
        "buffer": moved_bits * (costs.buffer_energy_pj_per_bit + costs.bus_energy_pj_per_bit),
        "write": 0.0,
    }
    latency_ns = vectors * counts.input_slices * max(costs.read_ns, counts.shared / costs.adc_rate_hz * 1e9)
    if written:
        g_us = costs.write_conductance_us or entries.get("mapping.g_max_us", 10.0)
        # V^2 G t in pJ: microsiemens times nanoseconds are 1e-15
        cell_pj = costs.write_pulses * costs.write_voltage_v**2 * g_us * costs.write_pulse_ns * 1e-3
        pj["write"] = matrices * counts.cells * cell_pj
        latency_ns += min(k, int(structure["tile_rows"]) or k) * costs.write_pulses * costs.write_pulse_ns
    holds = matrices * (site.array == site.index)  # a shared array is counted where it is first used
    area_um2 = (
        counts.allocated * costs.array_area_um2 / 128**2
        + counts.arrays * (int(structure["tile_rows"]) or k) * costs.dac_area_um2
        + counts.adcs * (adc_um2 + costs.shift_add_area_um2)
    )
    arithmetic_pj, memory_pj = _digital_pj(k, n, runs, matrices, written, costs)
    energy = {f"energy_{part}_uj": pj[part] * 1e-6 for part in PARTS}
    return {
        "site": site.index,
        "node": site.node,
        "layer": site.layer,
        "component": site.component,
        "rows": k,
        "columns": n,
        "vectors": vectors,
        "matrices": matrices,
        "tiles": holds * counts.tiles,
        "arrays": holds * counts.arrays,
        "cells": holds * counts.cells,
        "adcs": holds * counts.adcs,
        "dac_conversions": runs * counts.dac_conversions,
        "adc_conversions": converted,
        "adc_bits": adc_bits,
        "lossless_bits": lossless,
        "macs": runs * k * n,
        **energy,
        "energy_uj": sum(energy.values()),
        "area_mm2": holds * area_um2 * 1e-6,
        "latency_us": latency_ns * 1e-3,
        "digital_arithmetic_uj": arithmetic_pj * 1e-6,
        "digital_memory_uj": memory_pj * 1e-6,
        "digital_uj": (arithmetic_pj + memory_pj) * 1e-6,
    }


def _digital_pj(k: int, n: int, runs: int, matrices: int, written: bool, costs: CostModel) -> tuple[float, float]:
    """Arithmetic and memory of an accelerator that moves each number once: weights from DRAM, the rest from a cache."""
    arithmetic = runs * k * n * (costs.digital_multiply_pj + costs.digital_add_pj)
    matrix_bit = costs.digital_cache_pj_per_bit if written else costs.digital_dram_pj_per_bit
    numbers = matrices * k * n * matrix_bit + runs * (k + n) * costs.digital_cache_pj_per_bit
    return arithmetic, numbers * costs.digital_bits


def _cells_of(
    structure: Mapping[str, int | str],
    entries: Mapping[str, float],
    written: bool,
    costs: CostModel,
    notes: dict[str, None],
    name: str,
) -> tuple[int, int, int, int]:
    """Cells for the bits of a value, devices of each, columns besides the values', and bits of a cell (0: analog)."""
    encoding, slice_bits = str(structure["encoding"]), int(structure["slice_bits"])
    if written and structure["write"] == "clipformer" and entries["write.bits"]:
        # What the transform leaves of the range needs fewer bits: 6 of 8 where it clips at a quarter.
        lowest = entries["mapping.g_min_us"] / entries["mapping.g_max_us"]
        top = max(min(1 - entries["write.alpha"] * lowest, entries["write.beta"]) - lowest, 0) / (1 - lowest)
        highest = round(top * (2 ** int(entries["write.bits"]) - 1))
        cells = math.ceil(max(1, highest.bit_length()) / costs.write_cell_bits)
        return cells, 2, 0, costs.write_cell_bits
    # Pairs hold the sign in their two devices. What is written at run time is always a pair.
    has_pair = written or encoding != "offset"
    bits = int(structure["weight_bits"]) - (1 if has_pair else 0)
    slices = math.ceil(bits / slice_bits) if slice_bits else 1
    if encoding == "weight" and not written:
        notes[
            f"Device '{name}' does not say how a weight becomes conductances: counted as {costs.devices_per_weight} "
            "cells (devices_per_weight)."
        ] = None
        return 1, costs.devices_per_weight, 0, 0
    unit_column = not written and encoding == "offset" and structure["offset_correction"] == "unit_column"
    return slices, 2 if has_pair else 1, int(unit_column), slice_bits


def _bits(
    converter: str,
    structure: Mapping[str, int | str],
    entries: Mapping[str, float],
    costs: CostModel,
    notes: dict[str, None],
    name: str,
) -> int:
    """Resolution of the DAC or the ADC in bits; of a number of steps the nearest."""
    steps, bits = entries.get(f"{converter}.steps", 0), entries.get(f"{converter}.bits", 0)
    if structure[converter] != "none" and (steps or bits):
        return int(bits) or max(1, round(math.log2(steps)))
    if converter == "dac" or costs.adc_bits is None:
        exact = f"Device '{name}' has an exact {converter.upper()}"
        notes[f"{exact}: counted with {costs.converter_bits} bits (converter_bits)."] = None
    return costs.converter_bits


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


def _published(rows: "pd.DataFrame", costs: CostModel) -> float:
    """`paper_ratio` for the layers of a model, NaN where they differ."""
    inside = rows[rows["layer"].notna()]
    queries = inside[inside["component"].isin(["query", "query_key_value"])]
    converted = rows["adc_conversions"].sum()
    if queries.empty or queries["rows"].nunique() > 1 or queries["vectors"].nunique() > 1 or not converted:
        return math.nan
    tokens, width, layers = int(queries["vectors"].iloc[0]), int(queries["rows"].iloc[0]), inside["layer"].nunique()
    stored = inside[~inside["component"].isin(["attention_scores", "attention_context"])]
    # Equation 8 counts 2 d^2 operations for the stored products of a layer and token, which are more: in proportion.
    share = 2 * width**2 * tokens * layers / stored["macs"].sum()
    product_pj = share * stored["energy_uj"].sum() * 1e6 / (tokens * layers)
    conversion_pj = rows["energy_adc_uj"].sum() * 1e6 / converted
    operation_pj = costs.digital_multiply_pj + costs.digital_add_pj
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
            raise InputError(f"The constant '{text}' cannot be read: write it as adc_energy_pj=2.")
        pairs.append((name.strip(), value.strip()))
    return pairs


def _checked(name: str, value: Any, kind: Any) -> Any:
    """A constant of its kind and in its range."""
    if name == "adc_model":
        if value not in get_args(AdcModel):
            raise InputError(f"adc_model is '{value}': expected {', '.join(get_args(AdcModel))}.")
        return value
    whole = kind is int or int in get_args(kind)
    least = 1 if whole else 0
    most = 2 if name in ("conversions_per_pair", "devices_per_weight") else math.inf
    above = name in ("adc_rate_hz", "technology_nm", "read_resistance_ohm")
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not least <= number <= most or number == math.inf or (whole and number != int(number)) or (above and not number):
        span = f"{'more than' if above else 'at least'} {least}" + (f" and at most {most}" if most < math.inf else "")
        raise InputError(f"The constant {name} is '{value}': expected a {'whole ' if whole else ''}number, {span}.")
    return int(number) if whole else number


def _pandas() -> Any:
    try:
        import pandas
    except ModuleNotFoundError as error:
        from emu.libraries import missing

        raise missing(error) from None
    return pandas
