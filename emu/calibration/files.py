"""Calibrated ranges as tables: those of a model, files of them, and what other programs trained."""

import ast
import contextlib
import csv
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from emu.contract.site import Site
from emu.contract.structure import parse_structure
from emu.errors import InputError
from emu.files import whole_file
from emu.libraries import library
from emu.rewriter import Calibrated, EmulatedModel, calibrated_sites

PLACE = ("tile", "slice", "polarity")
NUMBERS = ("largest_input", "lowest_output", "highest_output", "largest_operand")
COLUMNS = ("node", *PLACE, *NUMBERS)

_RANGE_OF_LAYER = ".input_range"  # what aihwkit-lightning calls the input ranges of a layer's tiles
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}  # of safetensors


def ranges_by_site(model: EmulatedModel) -> Iterator[tuple[Site, Calibrated, NDArray[np.float32]]]:
    """Yields each site with calibrated ranges, which of these are fitted, and the ranges.

    The ranges are float32 `[row tiles, weight slices, devices of a pair, 4]`, 1 where all share one, of which the last
    are the largest input, the lowest and the highest output and the largest operand; NaN where they are not known yet.
    """
    yield from _by_site(model, model.value("emu.ranges"))


def export_ranges(model: EmulatedModel, path: str | Path) -> int:
    """Writes the calibrated ranges of a model as CSV, as `docs/devices.md` describes it.

    Returns:
        The number of ranges.

    Raises:
        InputError: the model has none, is not calibrated yet, or the file cannot be written.
    """
    if not calibrated_sites(model.manifest):
        raise InputError(f"{model.name} has no converters with calibrated ranges.")
    if model.manifest.calibration is None:
        raise InputError(f"{model.name} is not calibrated yet: run 'emu calibrate' on it first.")
    rows = []
    for site, fitted, ranges in ranges_by_site(model):
        for place in np.ndindex(ranges.shape[:-1]):
            numbers = zip(ranges[place], _read_at(place, fitted), strict=True)
            rows.append([site.node, *place, *(str(number) if read else "" for number, read in numbers)])
    with whole_file(Path(path)) as part, part.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return len(rows)


def import_ranges(model: EmulatedModel, path: str | Path) -> EmulatedModel:
    """A model with the calibrated ranges of a file.

    Args:
        model: a rewritten model with calibrated converters.
        path: CSV, as `export_ranges` writes it, with all ranges of the model; or what aihwkit-lightning trained, a
            state dict as .safetensors or as what `torch.save` writes (.pt, .pth, .bin), whose input ranges are taken:
            `<layer>.input_range`, one number for each row tile of the layer.

    Returns:
        The model with these ranges; its manifest says so under `calibration`.

    Raises:
        InputError: the file cannot be read or is of another model: it names a site or layer that is not there, another
            number of ranges, or a range that is none; or a range is missing.
    """
    path = Path(path)
    if not calibrated_sites(model.manifest):
        raise InputError(f"{model.name} has no converters with calibrated ranges: {path} is for another model.")
    if not path.is_file():
        raise InputError(f"There is no file {path} to take ranges from.")
    ranges = model.value("emu.ranges").copy()
    if path.suffix.lower() == ".csv":
        _take_table(model, ranges, path)
    elif path.suffix.lower() in (".safetensors", ".pt", ".pth", ".bin"):
        _take_layers(model, ranges, path)
    else:
        raise InputError(f"{path} is no file of ranges: expected .csv, .safetensors, .pt, .pth or .bin.")
    for site, fitted, own in _by_site(model, ranges):
        for place in np.ndindex(own.shape[:-1]):
            for name, number, read in zip(NUMBERS, own[place], _read_at(place, fitted), strict=True):
                if read and not np.isfinite(number):
                    raise InputError(f"{path} lacks {name} of {_said(place)} of node '{site.node}'.")
    return model.calibrated(ranges, {"method": "import", "data": str(path)})


def _by_site(
    model: EmulatedModel, ranges: NDArray[np.float32]
) -> Iterator[tuple[Site, Calibrated, NDArray[np.float32]]]:
    """`ranges_by_site` of other ranges than the model's own; what it yields are views of them."""
    nodes = model.nodes()
    for index, fitted in calibrated_sites(model.manifest).items():
        site = model.manifest.sites[index]
        node = nodes[site.node]
        structure = parse_structure(node.op_type, {name: each.value for name, each in node.attributes.items()})
        yield site, fitted, ranges[index, : math.prod(structure.ranges)].reshape(structure.ranges)


def _read_at(place: tuple[int, ...], fitted: Calibrated) -> tuple[bool, bool, bool, bool]:
    """Which numbers of a range are read: inputs are those of a tile, and a written operand has one for all tiles."""
    outputs = fitted.adc != ""
    return fitted.dac != "" and not any(place[1:]), outputs, outputs, fitted.operand and not any(place)


def _said(place: tuple[int, ...]) -> str:
    return ", ".join(f"{name} {number}" for name, number in zip(PLACE, place, strict=True))


def _take_table(model: EmulatedModel, ranges: NDArray[np.float32], path: Path) -> None:
    """Fills in the ranges of a CSV file."""
    sites = {site.node: (fitted, own) for site, fitted, own in _by_site(model, ranges)}
    for _, own in sites.values():
        own[...] = np.nan
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = list(csv.reader(file)) or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no CSV file: {error}.") from None
    if tuple(head) != COLUMNS:
        raise InputError(f"{path} is no file of ranges: expected '{','.join(COLUMNS)}' in its first line.")
    seen = set()
    for line, row in enumerate(rows, 2):
        where = f"{path}, line {line}"
        if len(row) != len(COLUMNS):
            raise InputError(f"{where} has {len(row)} values, expected {len(COLUMNS)}.")
        node = row[0]
        if node not in sites:
            raise InputError(
                f"{where} is of node '{node}', at which the model has no calibrated ranges: the file is of another "
                "model or device."
            )
        fitted, own = sites[node]
        counted = zip(row[1:4], PLACE, own.shape[:-1], strict=True)
        place = tuple(_index(text, name, size, where, node) for text, name, size in counted)
        if (node, place) in seen:
            raise InputError(f"{where} gives {_said(place)} of node '{node}' a second time.")
        seen.add((node, place))
        own[place] = _numbers(row[4:], _read_at(place, fitted), where)
    for fitted, own in sites.values():
        own[..., 0], own[..., 3] = own[:, :1, :1, 0], own[0, 0, 0, 3]
        own[...] = np.where([fitted.dac != "", *[fitted.adc != ""] * 2, fitted.operand], own, [1, -1, 1, 1])


def _index(text: str, name: str, size: int, where: str, node: str) -> int:
    if not (text.isdecimal() and int(text) < size):
        raise InputError(
            f"{where} is of {name} '{text}', expected 0 to {size - 1}, which node '{node}' has: the file is of "
            "another model or device."
        )
    return int(text)


def _numbers(texts: list[str], read: tuple[bool, ...], where: str) -> NDArray[np.float32]:
    """The numbers of one range, NaN where none is read."""
    numbers = np.full(len(texts), np.nan, np.float32)
    for index, (name, text, wanted) in enumerate(zip(NUMBERS, texts, read, strict=True)):
        if not wanted and text == "":
            continue
        if not wanted:
            raise InputError(f"{where} has {name} '{text}', expected nothing: the device does not read it there.")
        with np.errstate(over="ignore"), contextlib.suppress(ValueError):
            numbers[index] = float(text)
        positive = name in ("largest_input", "largest_operand")
        if not np.isfinite(numbers[index]) or (positive and numbers[index] <= 0):
            expected = "a number greater than 0" if positive else "a finite number"
            raise InputError(f"{where} has {name} '{text}', expected {expected}.")
    if read[1] and numbers[1] >= numbers[2]:
        raise InputError(f"{where} has outputs from {texts[1]} to {texts[2]}, expected the lowest first.")
    return numbers


def _take_layers(model: EmulatedModel, ranges: NDArray[np.float32], path: Path) -> None:
    """Fills in the input ranges of a state dict."""
    layers = _input_ranges(path)
    if not layers:
        raise InputError(f"{path} has no input ranges of aihwkit-lightning: expected tensors '<layer>.input_range'.")
    sites = {site.index: (site, fitted, own) for site, fitted, own in _by_site(model, ranges)}
    for layer, values in layers.items():
        found = [site.index for site in _sites_of(model, layer)]
        if not found and not _is_digital(model, layer):
            raise InputError(
                f"{path} has input ranges of layer '{layer}', and the model has no site of that name: the file is of "
                "another model."
            )
        for index in found:
            site, fitted, own = sites.get(index, (model.manifest.sites[index], Calibrated("", "", False), None))
            if own is None or not fitted.dac:
                raise InputError(
                    f"{path} has input ranges of layer '{layer}', and the device of node '{site.node}' has no "
                    'calibrated DAC: rewrite the model with dac.range = "calibrated".'
                )
            if fitted.adc:
                raise InputError(
                    f"{path} has input ranges alone, and the ADC of node '{site.node}' is calibrated too, for inputs "
                    "of other ranges: export all ranges with 'emu ranges', change them there and import that."
                )
            if values.shape not in ((), (1,), (len(own),)):
                raise InputError(
                    f"{path} has {values.size} input ranges of layer '{layer}', and node '{site.node}' has "
                    f"{len(own)}: expected the same tiles (mapping.tile_rows, mapping.split balanced, dac.range_per "
                    "tile)."
                )
            if not (np.isfinite(values).all() and (values > 0).all()):
                raise InputError(f"{path} has an input range of layer '{layer}' that is not a number greater than 0.")
            own[..., 0] = values.reshape(-1, 1, 1)


def _sites_of(model: EmulatedModel, layer: str) -> list[Site]:
    """The sites that compute a layer of a PyTorch model: those of its name, else those whose name ends so."""
    nodes = model.nodes()
    names = {
        site.index: _layer_names(site.node, nodes[site.node])
        for site in model.manifest.sites
        if site.is_stored and site.is_product
    }
    exact = [index for index, own in names.items() if layer in own]
    inside = [
        index
        for index, own in names.items()
        if any(f".{name}".endswith(f".{layer}") or f".{layer}".endswith(f".{name}") for name in own)
    ]
    # A shorter name may be that of several layers; then it is none.
    found = exact or (inside if len({tuple(sorted(names[index])) for index in inside}) == 1 else [])
    return [model.manifest.sites[index] for index in found]


def _is_digital(model: EmulatedModel, layer: str) -> bool:
    """Whether a layer is one of the products that the model leaves digital."""
    return any(layer in _layer_names(each.node) for each in model.manifest.skipped)


def _layer_names(name: str, node: ir.Node | None = None) -> set[str]:
    """What a PyTorch model may call the layer of a node, after whose modules exporters name nodes and weights."""
    path, _, _ = name.strip("/").rpartition("/")
    names = {path.replace("/", ".")}
    if node is not None:
        weight = node.inputs[1]
        if weight is not None and (weight.name or "").endswith(".weight"):
            names.add(str(weight.name).removesuffix(".weight"))
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        names |= set(scopes[-2:-1])
    return names - {""}


def _input_ranges(path: Path) -> dict[str, NDArray[np.float32]]:
    """The input ranges of a state dict, by layer."""
    tensors = _of_safetensors(path) if path.suffix.lower() == ".safetensors" else _of_torch(path)
    return {
        name.removesuffix(_RANGE_OF_LAYER): np.asarray(values, np.float32)
        for name, values in tensors.items()
        if name.endswith(_RANGE_OF_LAYER)
    }


def _of_torch(path: Path) -> Mapping[str, Any]:
    torch = library("torch", "train")
    try:
        # Its layers put their configuration beside the tensors, as objects that nothing here needs.
        others = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        with torch.serialization.safe_globals([(_Other, name) for name in others]):
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever unpickling a foreign file raises
        raise InputError(f"{path} cannot be read by torch.load: {' '.join(str(error).split())[:200]}.") from None
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    return {
        str(name): value.float().numpy()
        for name, value in state.items()
        if isinstance(value, torch.Tensor) and str(name).endswith(_RANGE_OF_LAYER)
    }


class _Other:
    """Stands in for what a file holds beside tensors: takes everything, does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Other":
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _of_safetensors(path: Path) -> Mapping[str, Any]:
    """The input ranges in a .safetensors file: a length, a header in JSON, and numbers."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            if not 2 <= size <= path.stat().st_size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(size))
            tensors = {}
            for name, entry in header.items():
                if not name.endswith(_RANGE_OF_LAYER):
                    continue
                begin, end = entry["data_offsets"]
                file.seek(8 + size + begin)
                values = np.frombuffer(file.read(end - begin), _TYPES[entry["dtype"]]).reshape(entry["shape"])
                if entry["dtype"] == "BF16":  # the upper half of a float32
                    values = (values.astype(np.uint32) << 16).view(np.float32)
                tensors[name] = values
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} cannot be read as .safetensors: {error}.") from None
    return tensors
