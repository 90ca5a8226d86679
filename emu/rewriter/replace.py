"""Puts crossbar products in the place of the products of a model. `docs/operators.md` is the contract.

The new node keeps the old node's name and metadata, and the result keeps its name, type and shape; what is digital
around it (bias, patches of an image) is added as plain ONNX nodes beside it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from emu.contract.codes import stored_codes
from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, FLOATS, FORMAT, OPERATORS, QUANTIZED, STORED, attribute_types
from emu.contract.site import Site
from emu.contract.structure import weight_slices
from emu.device import Profile
from emu.device.sections.faults import FaultsFloat
from emu.errors import InputError
from emu.rewriter.batch import Batch
from emu.rewriter.builder import GraphBuilder
from emu.rewriter.dataflow import tensor_of
from emu.rewriter.find import Product
from emu.rewriter.load import DOMAIN
from emu.rewriter.modernize import lowest_ir_version
from emu.rewriter.positions import Along, PositionInputs, Positions
from emu.rewriter.quantized import QuantizedTensor
from emu.rewriter.shapes import Probes
from emu.rewriter.sharing import Held, held_by
from emu.rewriter.stored_tensors import StoredTensor

# The scalar control inputs of a rewritten model and their default values.
SCALARS = {"emu.seed": 0, "emu.read_seed": 0, "emu.sample": 0, "emu.head": -1}
_SAMPLE_AND_BATCH = "emu.sample_and_batch"
_KEY_AXES = {"attention_scores": "columns", "attention_context": "rows"}  # of their second operand
_KEY_SIDE = ("attention_scores", "position_scores")  # products whose second operand comes from the keys
_VALUE_SIDE = ("attention_context",)


def replace_products(
    model: ir.Model,
    sites: Sequence[Site],
    products: Sequence[Product],
    tensors: Sequence[StoredTensor],
    probes: Probes,
    profiles: Mapping[str, Profile],
    faults: np.ndarray | None,
    batch: Batch,
    positions: Positions,
    name: str,
) -> None:
    """Replaces products by crossbar products, puts stored tensors into arrays and adds the control inputs, in place.

    Args:
        model: a normalized model.
        sites: the sites to make, numbered from 0 in this order.
        products: the product behind each of the first sites.
        tensors: the stored tensor behind each of the sites that follow.
        probes: the model's shapes.
        profiles: the devices of the sites by name, in order of first use.
        faults: the list of faults in the place of random ones, int64 `[F, 2]`, as `docs/operators.md` has it; None for
            random ones.
        batch: where the model's samples lie.
        positions: the model's sequences.
        name: how to call the model in an error.

    Raises:
        InputError: a weight that is not finite, integer codes on a device that cannot hold them, or a model that
            already uses a name of the controls.

    """
    builder = GraphBuilder(model.graph, name)
    listed = faults is not None
    controls = _add_controls(builder, sites, profiles, faults, batch, positions)
    weights = _Weights(builder, {product: products[site.array] for site, product in zip(sites, products, strict=False)})
    for site, tensor in zip(sites[len(products) :], tensors, strict=True):
        profile = profiles[site.device]
        attributes = node_attributes(site, profile, len(sites), listed, name)
        if site.array < len(products):
            held = weights.as_float(products[site.array])
        else:
            held = builder.as_initializer(tensors[site.array - len(products)].value)
        inputs = controls.of(FAULTY_WEIGHT, profile)
        _replace_tensor(builder, inputs, attributes, tensor, held)
    for site, product in zip(sites, products, strict=False):
        profile = profiles[site.device]
        attributes = node_attributes(site, profile, len(sites), listed, name)
        if site.is_stored:
            inputs = controls.of(STORED, profile, _rows_along(product, site, positions))
        else:
            keys = _keys_along(product, site, positions)
            attributes["key_axis"] = _KEY_AXES.get(site.component, "none")
            attributes["write_scaling"] = _write_scaling(site, profile, keys, positions, name)
            inputs = controls.of(DYNAMIC, profile, _rows_along(product, site, positions), keys)
        crossbar = _Crossbar(builder, inputs, controls.batch, attributes, product.node)
        if not product.stored:
            right = _operand(product.node, 1)
            if attributes["write"] != "none" and _is_shared_by_samples(product, probes):
                right = _one_per_sample(builder, controls.batch, right, product, probes)
            result = crossbar.product(DYNAMIC, [crossbar.left, right])
        elif product.node.op_type == "Conv":
            result = _replace_conv(builder, crossbar, weights, product)
        elif product.node.op_type == "Gemm":
            result = _replace_gemm(builder, crossbar, weights, product)
        else:
            result = _stored(builder, crossbar, weights, product)
        builder.swap(product.node, result)
    model.opset_imports[DOMAIN] = 1
    model.ir_version = lowest_ir_version(model)


def device_inputs(profiles: Collection[str]) -> dict[str, str]:
    """The control input with the numbers of each device, by the device's name."""
    return {name: "emu.device" if len(profiles) == 1 else f"emu.device.{name}" for name in profiles}


def entries_of(profile: Profile, listed: bool = False) -> dict[str, float]:
    """The numbers of a device's control input by entry; without those of random faults if faults come from a list."""
    return {name: value for name, value in profile.entries().items() if not (listed and name.startswith("faults."))}


def is_disturbed(site: Site, profile: Profile) -> bool:
    """Whether anything of a device acts on what a site computes, whatever the device's numbers are."""
    structure, numbers = profile.structure(), profile.entries().keys()
    if site.is_stored:
        acts = any(structure[name] not in ("none", 0) for name in ("fault_source", "program", "drift", "weight_bits"))
        acts = acts or bool(numbers & {"program.modifier", "mapping.cell_bits", "mapping.percentile"})
    else:
        acts = structure["write"] != "none" and _is_written_operand(site, profile)
        acts = acts or structure["write_scaling"] == "calibrated" or "mapping.percentile" in numbers
    if not site.is_product:  # nothing is read through converters
        return acts
    wires = structure["ir_drop"] != "none" and (site.is_stored or structure["ir_drop"] != "network")
    acts = acts or wires or any(structure[name] != "none" for name in ("dac", "adc", "read_noise"))
    return acts or bool(numbers & {"read.input_noise", "read.output_noise"})


def node_attributes(
    site: Site, profile: Profile, sites: int, listed: bool = False, model: str = "The model"
) -> dict[str, int | str]:
    """The attributes of a site's node that do not come from its weight: all that `docs/operators.md` lists.

    Args:
        site: the site.
        profile: its device.
        sites: number of sites in the model.
        listed: whether faults come from a list.
        model: how to call the model in an error.

    Raises:
        InputError: the site holds integer codes that the device's faults do not fit, or its operands are written at
            run time and the device's ADC needs to know their levels.

    """
    known = attribute_types(STORED if site.is_stored else DYNAMIC)
    structure = {name: value for name, value in profile.structure().items() if name in known}
    structure["entries"] = ",".join(entries_of(profile, listed))
    if site.is_stored:
        structure |= _fault_attributes(site, profile, structure, listed, model)
        if site.is_product:
            structure["window"] = site.window
    else:
        if not _is_written_operand(site, profile):
            structure["write"] = "none"
        if structure["ir_drop"] == "network":  # of conductances that are there before the product
            structure["ir_drop"] = "none"
        if structure["adc"] == "granular" and not profile.entries().get("mapping.cell_bits"):
            raise InputError(
                f"{model}: node '{site.node}' multiplies activations, and a granular ADC needs levels of what is "
                f"stored: leave it digital (exclude component={site.component}), or map it to another device."
            )
    if site.is_product:
        structure |= _range_counts(site, profile)
    return {
        "format": FORMAT,
        "site": site.index,
        "array": site.array,
        "sites": sites,
        "sample_axis": site.sample_axis,
        "heads": site.heads,
        "head_axis": site.head_axis,
        "head_groups": site.head_groups,
        "head_share": site.head_share,
        **structure,
    }


def _rows_along(product: Product, site: Site, positions: Positions) -> Along | None:
    """What the rows of a product's activation count of a sequence."""
    value = product.activation
    rank = positions.rank(value)
    if product.convolution is not None or site.sample_axis < 0 or rank is None:
        return None
    return positions.along(value, 0 if rank == 2 else rank - 2)


def _keys_along(product: Product, site: Site, positions: Positions) -> Along | None:
    """What the keys that a product's second operand holds count of a sequence."""
    right, axis = _operand(product.node, 1), {"columns": -1, "rows": -2}.get(_KEY_AXES.get(site.component, ""))
    return None if axis is None or site.sample_axis < 0 else positions.along(right, axis)


def _write_scaling(site: Site, profile: Profile, keys: Along | None, positions: Positions, model: str) -> str:
    """What shares a scale of a written operand: by default every token where the operand grows with a cache."""
    chosen: str | None = profile.write.scaling
    if not positions.is_cached(keys):
        return chosen or "matrix"
    if chosen in ("matrix", "sample"):
        raise InputError(
            f"{model}: node '{site.node}' reads keys from a cache that grows, and write.scaling '{chosen}' would scale "
            "what is written already by what comes later: set it to token or calibrated."
        )
    return chosen or "token"


def _is_written_operand(site: Site, profile: Profile) -> bool:
    """Whether the device's write errors are for this written operand: K, V or both."""
    operands = getattr(profile.write, "operands", "both")
    return site.component not in {"both": (), "key": _VALUE_SIDE, "value": _KEY_SIDE}[operands]


def _fault_attributes(
    site: Site, profile: Profile, structure: Mapping[str, int | str], listed: bool, model: str
) -> dict[str, int | str]:
    """What of a device's faults is different at this site: faults from a list, and how the model stores its weights."""
    changes: dict[str, int | str] = {}
    if listed and structure["fault_source"] != "none":
        # The list is what the protection left.
        changes = {"fault_source": "list", "fault_protection": "none"}
    faults, mask = profile.faults, int(structure["fault_mask"])
    if isinstance(faults, FaultsFloat):
        own = faults.storage == "model"
        if site.code_bits and (not own or faults.flip in ("exponent", "mantissa")):
            raise InputError(
                f"{model}: node '{site.node}' holds integer codes of {site.code_bits} bits, and device bit flips hit "
                f"{f'the {faults.flip} of floats' if own else faults.storage}: set faults.storage to int, or map the "
                "node to another device."
            )
        if not site.code_bits and not own and faults.convert == "never" and faults.storage != site.stored_type:
            raise InputError(
                f"{model}: node '{site.node}' holds {site.stored_type}, and device bit flips hit {faults.storage}: set "
                f"faults.storage to {site.stored_type} or model, or faults.convert to round."
            )
        if own and not site.code_bits:
            mask = faults.mask_of(FLOATS[site.stored_type])
            _check_bits(site, f"holds {site.stored_type}", mask, FLOATS[site.stored_type].bits, model)
            return changes | {"fault_storage": site.stored_type, "fault_mask": mask}
        changes |= {"fault_storage": "int"} if own else {}
        every = 2**32 - 1
        mask = 1 << (site.code_bits - 1) if own and faults.flip == "sign" else mask
    else:
        every = 2 ** int(structure["fault_bits"]) - 1
    if site.code_bits and structure["fault_storage"] != "none":
        if mask == every:
            mask = 2**site.code_bits - 1
        _check_bits(site, f"holds codes of {site.code_bits} bits", mask, site.code_bits, model)
        changes |= {"fault_bits": site.code_bits, "fault_mask": mask}
    return changes


def _check_bits(site: Site, holds: str, mask: int, bits: int, model: str) -> None:
    if mask >= 2**bits:
        raise InputError(
            f"{model}: node '{site.node}' {holds}, and the device's faults hit bit {mask.bit_length() - 1}: choose "
            f"bits 0 to {bits - 1}."
        )


@dataclass(frozen=True)
class _Controls:
    """The control inputs of the graph, and the batch size int64 [1]."""

    values: Mapping[str, ir.Value]
    devices: Mapping[str, str]
    sample: ir.Value
    batch: ir.Value
    places: PositionInputs

    def of(
        self,
        op: str,
        profile: Profile,
        rows: Along | None = None,
        keys: Along | None = None,
    ) -> tuple[ir.Value, ...]:
        """What an operator takes after its operands, in order."""
        given = {name.removeprefix("emu."): value for name, value in self.values.items()}
        given |= {"device": self.values[self.devices[profile.name]], "sample": self.sample}
        given |= {"position": self.places.position(rows), "keys": self.places.keys(keys)}
        return tuple(given[each.name] for each in OPERATORS[op].controls)


def _add_controls(
    builder: GraphBuilder,
    sites: Sequence[Site],
    profiles: Mapping[str, Profile],
    faults: np.ndarray | None,
    where: Batch,
    positions: Positions,
) -> _Controls:
    devices = device_inputs(profiles)
    arrays: dict[str, np.ndarray] = {
        **{
            value: np.array(list(entries_of(profiles[name], faults is not None).values()), dtype=np.float32)
            for name, value in devices.items()
        },
        "emu.strength": np.ones(len(sites), dtype=np.float32),
        "emu.ranges": _ranges(sites, profiles),
        "emu.faults": np.zeros((0, 2), dtype=np.int64) if faults is None else faults,
        **{name: np.array(value, dtype=np.int64) for name, value in SCALARS.items()},
    }
    first = next((value for value in builder.graph.inputs if value.name == where.input), None)
    values = {}
    for name, array in arrays.items():
        builder.reserve(name)
        value = ir.Value(
            name=name,
            shape=ir.Shape(array.shape if name != "emu.faults" else ("emu.listed", 2)),
            type=ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            const_value=ir.tensor(array, name=name),
        )
        builder.graph.register_initializer(value)
        builder.graph.inputs.append(value)
        values[name] = value
    sample = builder.node(
        "Reshape", [values["emu.sample"], builder.constant("emu.one", np.array([1]))], f"{_SAMPLE_AND_BATCH}.sample"
    )
    if first is None:  # no input counts samples: there is one
        batch = builder.constant(f"{_SAMPLE_AND_BATCH}.batch", np.array([1]))
    else:
        shape = builder.node("Shape", [first], f"{_SAMPLE_AND_BATCH}.shape")
        axis = builder.constant("emu.batch_axis", np.array([where.axis]))
        batch = builder.node("Gather", [shape, axis], f"{_SAMPLE_AND_BATCH}.batch", axis=0)
    both = builder.node("Concat", [sample, batch], _SAMPLE_AND_BATCH, axis=0)
    places = PositionInputs(builder, positions.sequences)
    builder.insert_first()
    return _Controls(values, devices, both, batch, places)


def _ranges(sites: Sequence[Site], profiles: Mapping[str, Profile]) -> np.ndarray:
    """The calibrated ranges of all sites until they are calibrated: NaN, which operators refuse, where they are read.

    float32 [sites, 4 R], R being the most that a site has.
    """
    counts = [math.prod(_range_counts(site, profiles[site.device]).values()) for site in sites]
    ranges = np.tile(np.array([1, -1, 1, 1], np.float32), (len(sites), max(counts, default=1), 1))
    for site, count, own in zip(sites, counts, ranges, strict=True):
        fitted = calibrated_ranges(profiles[site.device], site)
        own[:count, np.array([fitted.dac != "", *[fitted.adc != ""] * 2, fitted.operand])] = math.nan
    return ranges.reshape(len(sites), -1)


def _range_counts(site: Site, profile: Profile) -> dict[str, int]:
    """The attributes that say how many calibrated ranges a site has."""
    fitted, structure = calibrated_ranges(profile, site), profile.structure()
    tiles = slices = polarities = 1
    rows, most = site.shape[0], int(structure["tile_rows"])
    # Along keys, tiles are added as the cache grows.
    if "tile" in f"{fitted.dac} {fitted.adc}" and rows is not None and _KEY_AXES.get(site.component) != "rows":
        tiles = (site.stack if site.is_stored else 1) * (math.ceil(rows / most) if most else 1)
    if "slice" in fitted.adc and site.is_stored:
        names = ("encoding", "weight_bits", "slice_bits")
        encoding, weight_bits, slice_bits = (structure[name] for name in names)
        slices = weight_slices(str(encoding), int(weight_bits), int(slice_bits))
    if fitted.adc not in ("", "site") and site.is_stored and structure["adc_pairs"] == "separate":
        polarities = 2
    return {"range_tiles": tiles, "range_slices": slices, "range_polarities": polarities}


class Calibrated(NamedTuple):
    """Which ranges of a site are fitted to data.

    Args:
        dac: what has an input range of its own, `site` or `tile`; empty where none is fitted.
        adc: what has an output range of its own, `site`, `tile`, `slice` or `tile_slice`; empty where none is fitted.
        operand: whether the range of the operand that is written is fitted.
    """

    dac: str
    adc: str
    operand: bool


def calibrated_ranges(profile: Profile, site: Site | None = None) -> Calibrated:
    """Which calibrated ranges a device has, at a site or anywhere."""
    dac, adc = (getattr(each, "range_per", "") for each in (profile.dac, profile.adc))
    operand = profile.structure()["write_scaling"] == "calibrated"
    if site is None:
        return Calibrated(dac, adc, operand)
    is_written = site.is_product and not site.is_stored
    return Calibrated(dac if site.is_product else "", adc if site.is_product else "", operand and is_written)


@dataclass(frozen=True)
class _Crossbar:
    """Makes the crossbar node of one site."""

    builder: GraphBuilder
    controls: tuple[ir.Value, ...]
    batch: ir.Value
    attributes: dict[str, int | str]
    old: ir.Node

    @property
    def left(self) -> ir.Value:
        """What is fed to the product. An earlier replacement may have put a new value in the place of the found one."""
        return _operand(self.old, 0)

    def stored(self, left: ir.Value, weight: "_Weight") -> ir.Value:
        """The product with what is in the array."""
        return self.product(weight.op_type, [left, *weight.values], weight.attributes)

    def product(
        self, op_type: str, operands: Sequence[ir.Value], attributes: Mapping[str, int] | None = None
    ) -> ir.Value:
        """The crossbar node, with attributes that only this operator has."""
        node = ir.node(
            op_type,
            [*operands, *self.controls],
            {**self.attributes, **(attributes or {})},
            domain=DOMAIN,
            name=self.old.name,
            doc_string=self.old.doc_string,
            metadata_props=dict(self.old.metadata_props),
        )
        return self.builder.add(node)


def _operand(node: ir.Node, place: int) -> ir.Value:
    value = node.inputs[place]
    assert value is not None, "the checker has seen to it"
    return value


@dataclass(frozen=True)
class _Weight:
    """What an array holds, as a crossbar node takes it: the values between X and the controls."""

    op_type: str
    values: tuple[ir.Value, ...]
    attributes: Mapping[str, int] = field(default_factory=dict)


def _shape(product: Product) -> tuple[int, ...]:
    """Shape of what the arrays of a stored product hold: [K, N], or [stack, K, N]."""
    matrix = product.rows or 0, product.columns or 0
    return matrix if product.stack == 1 else (product.stack, *matrix)


@dataclass
class _Weights:
    """Weights as [K, N] matrices; a weight that several sites share is transposed, checked and stored once.

    `holders` names for every product the one whose weight stands for it: another one if they share an array.
    """

    builder: GraphBuilder
    holders: Mapping[Product, Product]
    _done: dict[tuple[ir.Value, bool, float], _Weight] = field(default_factory=dict)

    def of(self, product: Product) -> _Weight:
        """The weight of a product as it lies in the array.

        Raises:
            InputError: it holds a NaN or an infinite value.

        """
        holder = self.holders[product]
        held = held_by(holder)
        key = (held.value, held.transposed, held.factor)
        if key not in self._done:
            assert held.tensor is not None, "stored products have constant weights"
            if not _is_finite(held.tensor):
                raise InputError(
                    f"{self.builder.model_name}: the weight '{holder.matrix.name}' of node '{holder.node.name}' holds "
                    "NaN or infinite values: check the training or the export."
                )
            shape = _shape(holder)
            if isinstance(held.tensor, QuantizedTensor):
                self._done[key] = self._codes(held, held.tensor, shape)
            else:
                self._done[key] = _Weight(STORED, (self._matrix(held, held.tensor, shape),))
        return self._done[key]

    def as_float(self, product: Product) -> ir.Value:
        """The weight of a product for a node that takes no codes."""
        holder = self.holders[product]
        held = held_by(holder)
        assert held.tensor is not None, "stored products have constant weights"
        return self._matrix(held, held.tensor, _shape(holder))

    def _codes(self, held: Held, tensor: QuantizedTensor, shape: tuple[int, ...]) -> _Weight:
        """Integer codes with their scale and zero point; a factor goes into the scale."""
        tensor = tensor.matrix(held.transposed, held.stack)
        if held.factor != 1.0:
            tensor = tensor.scaled(held.factor)
        scale, zero_point, rows = tensor.parameters()
        name, codes, bits = held.value.name, tensor.codes, tensor.bits
        sizes = ir.Shape((*shape, 2) if bits > 8 else shape)
        values = (
            self.builder.initializer(
                f"{name}.codes",
                ir.LazyTensor(lambda: ir.tensor(stored_codes(codes(), bits)), ir.DataType.INT8, sizes),
            ),
            self.builder.constant(f"{name}.scale", np.array(scale, dtype=np.float32)),
            self.builder.constant(f"{name}.zero_point", np.array(zero_point, dtype=np.float32)),
        )
        return _Weight(QUANTIZED, values, {"code_bits": bits, "block_rows": rows})

    def _matrix(self, held: Held, tensor: ir.TensorProtocol, shape: tuple[int, ...]) -> ir.Value:
        value, factor = held.value, held.factor
        if not held.transposed and factor == 1.0:
            return self.builder.as_initializer(value)

        def laid_out() -> ir.TensorProtocol:
            matrix = held.matrix
            return ir.tensor(np.ascontiguousarray(matrix * np.float32(factor) if factor != 1.0 else matrix))

        name = f"{value.name}.{'transposed' if held.transposed else 'scaled'}"
        # Made when the model is written, one at a time: the copies of all weights are never in memory together.
        return self.builder.initializer(name, ir.LazyTensor(laid_out, ir.DataType.FLOAT, ir.Shape(shape)))


def _is_finite(tensor: ir.TensorProtocol) -> bool:
    if isinstance(tensor, QuantizedTensor):
        return bool(np.isfinite(tensor.scale).all() and np.isfinite(tensor.zero_point).all())
    return bool(np.isfinite(tensor.numpy()).all())


def _replace_tensor(
    builder: GraphBuilder,
    controls: Sequence[ir.Value],
    attributes: dict[str, int | str],
    tensor: StoredTensor,
    held: ir.Value,
) -> None:
    """Puts a FaultyWeight between a constant and everything that reads it, weights of products left out."""
    node = ir.node(FAULTY_WEIGHT, [held, *controls], attributes, domain=DOMAIN, name=tensor.node)
    result = builder.add(node, "disturbed")
    value = tensor.value
    result.shape, result.type = value.shape, value.type
    for user, place in tensor.uses:
        user.replace_input_with(place, result)
    builder.insert_first()
    if value.is_initializer() and value.name and not value.uses() and not value.is_graph_output():
        builder.graph.initializers.pop(value.name)  # another tensor with the same content stands for it


def _is_shared_by_samples(product: Product, probes: Probes) -> bool:
    """Whether one second operand serves the whole batch: [batch, ..., M, K] times [1, ..., K, N] or [K, N]."""
    left, right = probes.base.get(product.activation), probes.base.get(product.matrix)
    if left is None or right is None or probes.batch_axis(product.activation) != 0 or left[0] != probes.batch:
        return False
    return len(left) > 2 and (len(right) < len(left) or right[0] == 1)


def _one_per_sample(
    builder: GraphBuilder, batch: ir.Value, value: ir.Value, product: Product, probes: Probes
) -> ir.Value:
    """Repeats an operand for every sample: what is written for a sample must not depend on the others in its batch."""
    inner = len(probes.base.get(product.activation) or ()) - 1
    name = product.node.name
    ones = builder.constant(f"{name}.ones", np.ones(inner, dtype=np.int64))
    shape = builder.node("Concat", [batch, ones], f"{name}.per_sample.shape", axis=0)
    return builder.node("Expand", [value, shape], f"{name}.per_sample")


def _stored(builder: GraphBuilder, crossbar: _Crossbar, weights: _Weights, product: Product) -> ir.Value:
    """The product itself. Rows that count [tokens * batch] are laid out as [tokens, batch] for it."""
    weight, name = weights.of(product), product.node.name
    if not product.samples_inside:
        return crossbar.stored(crossbar.left, weight)
    ends = [
        builder.constant(f"{name}.{part}", np.array([size])) for part, size in (("all", -1), ("rows", product.rows))
    ]
    shape = builder.node("Concat", [ends[0], crossbar.batch, ends[1]], f"{name}.by_sample.shape", axis=0)
    by_sample = builder.node("Reshape", [crossbar.left, shape], f"{name}.by_sample")
    result = crossbar.stored(by_sample, weight)
    flat = builder.constant(f"{name}.flat.shape", np.array([-1, product.columns]))
    return builder.node("Reshape", [result, flat], f"{name}.flat")


def _replace_gemm(builder: GraphBuilder, crossbar: _Crossbar, weights: _Weights, product: Product) -> ir.Value:
    """Alpha * A op(B) + beta * C: alpha and the transpose go into the weight, beta * C stays a digital Add."""
    node = product.node
    beta = node.attributes.get_float("beta", 1.0)
    result = _stored(builder, crossbar, weights, product)
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or beta == 0.0:
        return result
    if beta != 1.0:
        constant = tensor_of(bias)
        if constant is not None:
            bias = builder.constant(f"{bias.name}.scaled", constant.numpy() * np.float32(beta))
        else:
            factor = builder.constant(f"{node.name}.beta", np.array(beta, dtype=np.float32))
            bias = builder.node("Mul", [bias, factor], f"{node.name}.scaled_bias")
    return builder.node("Add", [result, bias], f"{node.name}.bias")


def _replace_conv(builder: GraphBuilder, crossbar: _Crossbar, weights: _Weights, product: Product) -> ir.Value:
    """A convolution: the crossbar node cuts the image into windows by itself; the bias stays a digital Add."""
    node, convolution = product.node, product.convolution
    assert convolution is not None, "a Conv is found with its windows"
    result = crossbar.stored(crossbar.left, weights.of(product))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None:
        return result
    shape = [1, convolution.groups * convolution.outputs, *([1] * len(convolution.window))]
    constant = tensor_of(bias)
    if constant is not None:
        bias = builder.constant(f"{bias.name}.channels", constant.numpy().reshape(shape))
    else:
        sizes = builder.constant(f"{node.name}.bias.shape", np.array(shape))
        bias = builder.node("Reshape", [bias, sizes], f"{node.name}.bias.channels")
    return builder.node("Add", [result, bias], f"{node.name}.bias")
