"""From a plain model to one that emulates its products on crossbars."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from emu.contract.codes import read_codes
from emu.contract.manifest import MANIFEST_KEY, Manifest
from emu.contract.schema import OPERATORS, QUANTIZED
from emu.contract.selection import Selection
from emu.contract.site import Site, Skipped
from emu.errors import InputError
from emu.rewriter.analysis import Analysis, analyze
from emu.rewriter.batch import Batch, find_batch
from emu.rewriter.devices import Device, Rule, assign, choose, load_devices
from emu.rewriter.faults import Faults
from emu.rewriter.load import DOMAIN, Loaded, ModelSource, check_graph, load
from emu.rewriter.manifest import make_manifest
from emu.rewriter.normalize import normalize
from emu.rewriter.passes import NameFusedDomainPass, RestoreCodesPass
from emu.rewriter.passes.expand_einsum import check_equations
from emu.rewriter.positions import Positions, find_positions, position_model
from emu.rewriter.protobuf_file import in_memory
from emu.rewriter.replace import replace_products
from emu.rewriter.save import save
from emu.rewriter.shapes import whole_batch
from emu.rewriter.sharing import Held, Share, arrays_of, check_share, held_by, transposes_of
from emu.rewriter.stored_tensors import StoredTensor, stored_tensors


@dataclass(frozen=True, eq=False)
class EmulatedModel:
    """A rewritten model.

    Attributes:
        manifest: what it says about itself, as in `metadata_props["emu.manifest"]`: `sites`, `devices`, `skipped`, ...
        name: how to call the model in an error.

    """

    manifest: Manifest
    _model: ir.Model
    name: str = "The model"

    @classmethod
    def open(cls, model: "ModelSource | EmulatedModel") -> "EmulatedModel":
        """A model that was rewritten before, from a file or from memory.

        Raises:
            InputError: no such file, or no rewritten model of this version of emu.

        """
        if isinstance(model, EmulatedModel):
            return model
        loaded = load(model, rewritten=True)
        return cls(
            Manifest.from_json(loaded.model.metadata_props[MANIFEST_KEY], loaded.name), loaded.model, loaded.name
        )

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The whole model as a protobuf, weights included."""
        return ir.to_proto(in_memory(self._model))

    @property
    def batch(self) -> tuple[str | None, int]:
        """The input that tells how many samples there are (None where none does), and its axis that counts them."""
        told = self.manifest.batch
        if told is not None:
            return told.input, told.axis
        # Written before models said so: then it was the first input that has dimensions.
        inputs = (each for each in self._model.graph.inputs if each.shape is None or len(each.shape))
        return next((each.name for each in inputs if not (each.name or "").startswith("emu.")), None), 0

    def value(self, name: str) -> NDArray[Any]:
        """The content of an initializer, such as the default of a control; not to be changed."""
        tensor = self._model.graph.initializers[name].const_value
        assert tensor is not None, "initializers have a content"
        return tensor.numpy()

    def positions(self) -> onnx.ModelProto | None:
        """A model of what computes the inputs `position` and `keys` of its nodes; None where nothing does."""
        return position_model(self._model)

    def nodes(self) -> dict[str, ir.Node]:
        """The nodes of the sites by name, not to be changed."""
        return {node.name or "": node for node in self._model.graph if node.domain == DOMAIN}

    def graph_to_change(self) -> ir.Model:
        """A copy of the model whose tensors are shared with it, and nothing else."""
        return self._model.clone()

    def products(self) -> list[tuple[Site | Skipped, ir.Node]]:
        """The products of a model with their nodes, not to be changed: sites, then those that could be sites."""
        nodes = {node.name or "": node for node in self._model.graph}
        products: list[Site | Skipped] = [site for site in self.manifest.sites if site.is_product]
        products += [each for each in self.manifest.skipped if each.component]
        return [(each, nodes[each.node]) for each in products if each.node in nodes]

    def stored(self, node: ir.Node) -> list[NDArray[Any]]:
        """What a node's array holds: W, or codes, scale and zero point; nothing if it is written.

        Codes are int8, or int16 if they have 16 bits, and have the shape of W.
        """
        operands = zip(OPERATORS[node.op_type].operands, node.inputs, strict=False)
        held = [self.value(value.name or "") for operand, value in operands if operand.constant and value is not None]
        if node.op_type == QUANTIZED:
            held[0] = read_codes(held[0], node.attributes.get_int("code_bits"))
        return held

    def calibrated(self, ranges: NDArray[np.float32], how: Mapping[str, Any]) -> "EmulatedModel":
        """The same model with these defaults of `emu.ranges`, float32 `[sites, 4 R]`, and `how` in its manifest."""
        model = self._model.clone()
        model.graph.initializers["emu.ranges"].const_value = ir.tensor(ranges, name="emu.ranges")
        manifest = replace(self.manifest, calibration=how)
        model.metadata_props[MANIFEST_KEY] = manifest.to_json()
        return EmulatedModel(manifest, model, self.name)

    def observed(self, values: Iterable[str]) -> "EmulatedModel":
        """The same model with these results of nodes as further outputs; other names are left out."""
        model = self._model.clone()
        found = {value.name: value for node in model.graph for value in node.outputs}
        outputs = {value.name for value in model.graph.outputs}
        wanted = [name for name in dict.fromkeys(values) if name in found and name not in outputs]
        model.graph.outputs.extend(found[name] for name in wanted)
        return EmulatedModel(self.manifest, model, self.name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, atomically; tensors of more than 1.9 GB go to `<path>.data` beside it.

        Raises:
            InputError: the folder does not exist, or cannot be written to.

        """
        save(self._model, path)


def rewrite(
    model: ModelSource,
    device: Device = "rram",
    only: str | None = None,
    exclude: str | None = None,
    set: Mapping[str, Any] | None = None,
    share: Share = "by-content",
    stored: str | None = None,
    map: Sequence[Rule] = (),
    faults: str | os.PathLike[str] | Faults | None = None,
    batch_axis: str | None = None,
) -> EmulatedModel:
    """Replaces the matrix products of a transformer by products on emulated crossbars.

    Args:
        model: the path of an .onnx file, an `onnx.ModelProto` or an onnx-ir model; it is never changed.
        device: a preset's name, the path of a TOML file, or a profile.
        only: map these sites only, such as `"layer=0-3 component=ffn_up,ffn_down"`; the others stay digital.
        exclude: leave these sites digital. Without `only` and `exclude` the profile of `device` says which sites
            are mapped (its `[sites]`, for sites that no rule of `map` matches); either replaces that, so that
            `only="*"` maps all.
        set: changes of the device, such as `{"program.sigma": 0.15}`; of another one by its name, as in
            `{"pcm:program.sigma": 0.15}`.
        share: which sites share one physical array, and so its disturbances: those with equal weights (`by-content`;
            weights that are all zeros or ones do not count), with the same initializer (`by-name`), or none (`never`).
        stored: also put these stored tensors that feed no product into arrays, such as
            `"component=word_embedding,norm"`; they become sites after those of the products.
        map: other devices for some sites, such as `["component=ffn_*:pcm", "layer=0:ideal"]`; of several rules that
            match a site the last one counts.
        faults: exactly these faults, for every chip, in the place of random ones: a file of `emu faults`.
        batch_axis: the axis of an input that counts samples, as `INPUT:AXIS`, where it cannot be told, or is told
            wrongly (the manifest says what was told): run-time noise is keyed by sample.

    Raises:
        InputError: a broken or unsupported model, a wrong device or setting, a selection that matches nothing, faults
            of other arrays, or a model without any product to map.

    """
    default, rules = load_devices(device, map, set)
    known = faults if isinstance(faults, Faults) or faults is None else Faults.load(faults)
    check_share(share)
    read = _analyzed(model, batch_axis)
    plain, name, analysis = read.model, read.name, read.analysis
    chosen, why = choose(analysis.sites, default, rules, only, exclude, may_be_empty=stored is not None)
    left = [Skipped.of(site, why) for site in analysis.sites if site not in chosen]
    products = [analysis.products[site.index] for site in chosen]
    tensors: list[StoredTensor] = []
    if stored is not None:
        candidates, unfit = stored_tensors(plain, analysis.probes, analysis.sites)
        if not candidates:
            raise InputError(f"{name} has no stored tensor besides the weights of its products: leave out 'stored'.")
        wanted = Selection.parse(stored, "stored").of([each.site(index) for index, each in enumerate(candidates)])
        tensors = [candidates[site.index] for site in wanted]
        chosen += wanted
        left += unfit
    sites, profiles = assign(chosen, default, rules)
    held = [*(held_by(product) for product in products), *(Held(each.value, each.tensor) for each in tensors)]
    arrays = arrays_of(held, share, [site.device for site in sites])
    sites = [replace(site, index=index, array=arrays[index]) for index, site in enumerate(sites)]
    tied = {index: transposes_of(index, held) for index in range(len(products), len(sites))}
    lists = None if known is None else known.by_array(sites, profiles)
    origin = None if known is None else known.origin
    manifest = make_manifest(profiles, sites, [*analysis.skipped, *left], read.batch, read.notes, tied, origin)
    replace_products(
        plain, sites, products, tensors, analysis.probes, profiles, lists, read.batch, read.positions, name
    )
    plain = RestoreCodesPass()(plain).model
    plain.metadata_props[MANIFEST_KEY] = manifest.to_json()
    check_graph(plain, f"{name} could not be rewritten into a valid graph", "report this model to the makers of emu")
    return EmulatedModel(manifest, plain, name)


def find_sites(model: ModelSource) -> list[Site]:
    """The sites of a plain model, in data-flow order: what `rewrite` would map to crossbars.

    Raises:
        InputError: as for `rewrite`.

    """
    return _analyzed(model).analysis.sites


def find_stored_tensors(model: ModelSource) -> list[Site]:
    """The stored tensors of a plain model that feed no product, in data-flow order: what `stored` can choose from.

    Raises:
        InputError: as for `rewrite`.

    """
    read = _analyzed(model)
    found, _ = stored_tensors(read.model, read.analysis.probes, read.analysis.sites)
    return [tensor.site(index) for index, tensor in enumerate(found)]


@dataclass(frozen=True)
class _Read:
    """A plain model as it was read and normalized, and what was found in it."""

    model: ir.Model
    name: str
    batch: Batch
    notes: list[str]
    analysis: Analysis
    positions: Positions


def _analyzed(source: ModelSource, batch_axis: str | None = None) -> _Read:
    loaded = load(source)
    try:
        return _read(loaded, batch_axis)
    except InputError:
        raise
    except Exception as error:  # of whichever library: a user gets a sentence, and the cause stays with it
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise InputError(
            f"{loaded.name} cannot be rewritten ({type(error).__name__}: {reason}): "
            "export it again, or report this model to the makers of emu."
        ) from error


def _read(loaded: Loaded, batch_axis: str | None) -> _Read:
    name = loaded.name
    NameFusedDomainPass()(loaded.model)
    check_graph(loaded.model, f"{name} is not a valid ONNX model", "export it again")
    check_equations(loaded.model, name)
    common_passes.RemoveInitializersFromInputsPass()(loaded.model)  # weights that old exporters also list as inputs
    batch = whole_batch(loaded.model, find_batch(loaded.model.graph, name, batch_axis), name)
    model = normalize(loaded.model, name, batch)
    analysis = analyze(model, name, batch)
    if not analysis.sites:
        reasons = "; ".join(f"'{each.node}' ({each.op}): {each.reason}" for each in analysis.skipped[:3])
        raise InputError(
            f"{name} has no matrix product to map to crossbars{f': {reasons}' if reasons else ''}: "
            "give a model with linear layers or attention."
        )
    positions = find_positions(model, batch)
    return _Read(model, name, batch, [*loaded.notes, *positions.notes], analysis, positions)
