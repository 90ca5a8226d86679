"""From a plain model to one that emulates its products on crossbars."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx
import onnx_ir as ir

from emu.device import Profile, load_profile
from emu.errors import InputError
from emu.rewriter.analysis import Analysis, analyze
from emu.rewriter.load import MANIFEST_KEY, ModelSource, check_graph, load
from emu.rewriter.manifest import make_manifest
from emu.rewriter.normalize import normalize
from emu.rewriter.passes import NameFusedDomainPass, RefuseUnsupportedPass, RestoreCodesPass
from emu.rewriter.protobuf_file import in_memory
from emu.rewriter.replace import replace_products
from emu.rewriter.save import save
from emu.rewriter.selection import matching, select
from emu.rewriter.sharing import Held, Share, arrays_of, check_share, held_by, transposes_of
from emu.rewriter.site import Site, Skipped
from emu.rewriter.stored_tensors import StoredTensor, stored_tensors


@dataclass(frozen=True, eq=False)
class EmulatedModel:
    """A rewritten model.

    Attributes:
        manifest: the JSON of `metadata_props["emu.manifest"]` as a dict: `sites`, `device`, `entries`, `skipped`, ...

    """

    manifest: dict[str, Any]
    _model: ir.Model

    @cached_property
    def model(self) -> onnx.ModelProto:
        """The whole model as a protobuf, weights included."""
        return ir.to_proto(in_memory(self._model))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the model, atomically; tensors of more than 1.9 GB go to `<path>.data` beside it.

        Raises:
            InputError: the folder does not exist, or cannot be written to.

        """
        save(self._model, path)


def rewrite(
    model: ModelSource,
    device: str | os.PathLike[str] | Mapping[str, Any] | Profile = "rram",
    only: str | None = None,
    exclude: str | None = None,
    set: Mapping[str, Any] | None = None,
    share: Share = "by-content",
    stored: str | None = None,
) -> EmulatedModel:
    """Replaces the matrix products of a transformer by products on emulated crossbars.

    Args:
        model: the path of an .onnx file, an `onnx.ModelProto` or an onnx-ir model; it is never changed.
        device: a preset's name, the path of a TOML file, or a profile.
        only: map these sites only, such as `"layer=0-3 component=ffn_up,ffn_down"`; the others stay digital.
        exclude: leave these sites digital.
        set: changes of the device, such as `{"program.sigma": 0.15}`.
        share: which sites share one physical array, and so its disturbances: those with equal weights (`by-content`;
            weights that are all zeros or ones do not count), with the same initializer (`by-name`), or none (`never`).
        stored: also put these stored tensors that feed no product into arrays, such as
            `"component=word_embedding,norm"`; they become sites after those of the products.

    Raises:
        InputError: a broken or unsupported model, a wrong device or setting, a selection that matches nothing, or a
            model without any product to map.

    """
    profile = load_profile(device, set)  # type: ignore[arg-type]
    check_share(share)
    plain, name, analysis = _analyzed(model)
    chosen = select(analysis.sites, only, exclude, may_be_empty=stored is not None)
    left = [Skipped(site.node, site.op, "not selected") for site in analysis.sites if site not in chosen]
    products = [analysis.products[site.index] for site in chosen]
    tensors: list[StoredTensor] = []
    if stored is not None:
        candidates, unfit = stored_tensors(plain, analysis.probes, analysis.sites)
        if not candidates:
            raise InputError(f"{name} has no stored tensor besides the weights of its products: leave out 'stored'.")
        tensors = matching(candidates, stored, "stored")
        left += unfit
    held = [*map(held_by, products), *(Held(each.value, each.tensor) for each in tensors)]
    arrays = arrays_of(held, share)
    all_sites = [*chosen, *(tensor.site() for tensor in tensors)]
    sites = [replace(site, index=index, array=arrays[index]) for index, site in enumerate(all_sites)]
    tied = {index: transposes_of(index, held) for index in range(len(products), len(sites))}
    manifest = make_manifest(profile, sites, [*analysis.skipped, *left], tied)
    replace_products(plain, sites, products, tensors, analysis.probes, profile, name)
    plain = RestoreCodesPass()(plain).model
    plain.metadata_props[MANIFEST_KEY] = json.dumps(manifest)
    check_graph(plain, f"{name} could not be rewritten into a valid graph", "report this model to the makers of emu")
    return EmulatedModel(manifest, plain)


def find_sites(model: ModelSource) -> list[Site]:
    """The sites of a plain model, in data-flow order: what `rewrite` would map to crossbars.

    Raises:
        InputError: as for `rewrite`.

    """
    return _analyzed(model)[2].sites


def find_stored_tensors(model: ModelSource) -> list[Site]:
    """The stored tensors of a plain model that feed no product, in data-flow order: what `stored` can choose from.

    Raises:
        InputError: as for `rewrite`.

    """
    plain, _, analysis = _analyzed(model)
    found, _ = stored_tensors(plain, analysis.probes, analysis.sites)
    return [replace(tensor.site(), index=index, array=index) for index, tensor in enumerate(found)]


def _analyzed(source: ModelSource) -> tuple[ir.Model, str, Analysis]:
    model, name = load(source)
    NameFusedDomainPass()(model)
    RefuseUnsupportedPass(name)(model)
    check_graph(model, f"{name} is not a valid ONNX model", "export it again")
    model = normalize(model)
    analysis = analyze(model, name)
    if not analysis.sites:
        reasons = "; ".join(f"'{each.node}' ({each.op}): {each.reason}" for each in analysis.skipped[:3])
        raise InputError(
            f"{name} has no matrix product to map to crossbars{f': {reasons}' if reasons else ''}: "
            "give a model with linear layers or attention."
        )
    return model, name, analysis
