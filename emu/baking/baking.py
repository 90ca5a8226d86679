"""Bakes the stored values of a chip into a plain model: every crossbar product becomes the product it was."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common_passes
from numpy.typing import NDArray

from emu.baking.chip import check_bakeable, chip_of
from emu.baking.products import replace_by_plain
from emu.baking.proof import Proof, prove
from emu.contract.baked import BAKED_KEY, BakedChip
from emu.contract.manifest import MANIFEST_KEY
from emu.device import Overrides
from emu.errors import InputError
from emu.evaluation.bench import check_calibrated
from emu.evaluation.sources import DataSource
from emu.files import unfinished_folder
from emu.rewriter import Device, EmulatedModel, Rule, Share, read_manifest, rewrite
from emu.rewriter.dataflow import sizes_of
from emu.rewriter.load import ModelSource, check_graph, read_proto
from emu.rewriter.protobuf_file import in_memory
from emu.rewriter.save import LARGEST_FILE_BYTES, save
from emu.rewriter.switches import settle_switches
from emu.version import __version__

Drop = Literal["read", "write", "converters", "wires"]
DROPS: tuple[Drop, ...] = get_args(Drop)
"""What a device does at run time, which a plain file can only leave out."""

_SHARED = "shared.data"  # of a folder of chips: all that no array holds
_SHARED_BYTES = 1024  # smaller tensors stay in every file


@dataclass(frozen=True, eq=False)
class BakedModel:
    """A plain model with the stored values of one chip.

    Attributes:
        chip: which chip.
        notes: what is not as in the emulated model, or not as in the original one, as sentences.

    """

    chip: BakedChip
    notes: tuple[str, ...]
    _model: ir.Model
    _emulated: EmulatedModel
    _controls: Mapping[str, NDArray[Any]]
    _stored: frozenset[str]
    """Names of the initializers that hold stored values."""

    @property
    def model(self) -> onnx.ModelProto:
        """The whole model as a protobuf, weights included."""
        return ir.to_proto(in_memory(self._model.clone()))

    def save(
        self,
        path: str | os.PathLike[str],
        data: str | Path | Mapping[str, Any] | DataSource | None = None,
        proof: bool = True,
    ) -> Proof | None:
        """Writes the model, once it has computed what the emulated one computes.

        Args:
            path: the file, replaced atomically; tensors of more than 1.9 GB go to `<path>.data` beside it.
            data: samples for the proof beside random ones, as for `emu.calibrate`.
            proof: whether to prove it.

        Returns:
            How far the outputs of both models are apart; None without a proof.

        Raises:
            InputError: the folder cannot be written to, the data do not fit, or the outputs are further apart than
                rounding explains; then nothing is written.

        """
        target = Path(path)
        if target.is_dir():
            raise InputError(f"{target} is a folder: give the name of a file in it.")
        with unfinished_folder(target) as folder:
            written = folder / target.name
            save(self._model, written)
            proved = self._prove(written, data) if proof else None
            for part in (written.with_name(f"{target.name}.data"), written):  # the model last
                if part.exists():
                    os.replace(part, target.with_name(part.name))
        return proved

    def _prove(self, written: Path, data: str | Path | Mapping[str, Any] | DataSource | None) -> Proof:
        exact = {*self.chip.dropped} <= {"read"}  # whose noise is 0 in the emulated model then
        return prove(self._emulated, self._controls, written, data, exact)


def bake(
    model: ModelSource | EmulatedModel,
    device: Device | None = None,
    *,
    set: Overrides | None = None,
    seed: int = 0,
    read_seed: int = 0,
    only: str | None = None,
    exclude: str | None = None,
    map: Sequence[Rule] = (),
    share: Share | None = None,
    stored: str | None = None,
    drop: Iterable[Drop] = (),
    converters: bool = False,
) -> BakedModel:
    """The plain model that computes what a rewritten one computes on one chip.

    Every product becomes MatMul (Conv where it was one) with what the chip's arrays hold, read out of the native
    library. Integer codes stay codes where the device does nothing but flip their bits.

    Args:
        model: a rewritten model, or a plain one with a `device`.
        device: for a plain model, as for `emu.rewrite`.
        set: settings of the device; of a rewritten model only the numbers of its devices.
        seed: which chip, 0 to 2^32 - 1.
        read_seed: which repetition, for slow noise that is drawn with every one.
        only: for a plain model, as for `emu.rewrite`.
        exclude: likewise.
        map: likewise.
        share: likewise.
        stored: likewise.
        drop: what is left out of what the device does at run time, of `DROPS`.
        converters: write DAC, ADC and row tiles of stored products in standard operators; a sum that is rounded
            otherwise may move an output of an ADC by one code.

    Raises:
        InputError: a model that is baked already, or plain and without a device; a device that does something at run
            time which is not dropped; or as for `emu.rewrite`.

    """
    dropped = tuple(dict.fromkeys(drop))
    for each in dropped:
        if each not in DROPS:
            raise InputError(f"'{each}' cannot be dropped: choose among {', '.join(DROPS)}.")
    emulated = opened(model, device, set=set, only=only, exclude=exclude, map=map, share=share, stored=stored)
    chip = chip_of(emulated, seed, read_seed, set if device is None else None, dropped)
    plain = emulated.graph_to_change()
    if converters and "converters" in dropped:
        raise InputError("Converters are either written or dropped: give one of the two.")
    check_calibrated(emulated.manifest if converters else None, emulated.name)
    check_bakeable(chip, list(emulated.nodes().values()), dropped, emulated.name, converters)
    made = replace_by_plain(plain, chip, emulated.name, converters)
    settle_switches(plain, chip.disturbed)
    for value in list(plain.graph.inputs):
        if (value.name or "").startswith("emu."):
            plain.graph.inputs.remove(value)
    common_passes.RemoveUnusedNodesPass()(plain)
    common_passes.RemoveUnusedOpsetsPass()(plain)
    if made.contrib:
        plain.opset_imports[made.contrib] = 1
    plain.metadata_props.pop(MANIFEST_KEY, None)
    source = Path(model).name if isinstance(model, str | os.PathLike) else ""
    record = BakedChip(
        devices={name: each.profile for name, each in emulated.manifest.devices.items()},
        settings=chip.settings,
        seed=seed,
        read_seed=read_seed,
        fingerprint=made.fingerprint,
        sites=len(emulated.manifest.sites),
        source=source,
        emu_version=__version__,
        dropped=dropped,
    )
    plain.metadata_props[BAKED_KEY] = record.to_json()
    check_graph(
        plain, f"{emulated.name} could not be baked into a valid graph", "report this model to the makers of emu"
    )
    return BakedModel(record, made.notes, plain, emulated, chip.controls, made.stored)


def bake_chips(
    model: ModelSource | EmulatedModel,
    folder: str | os.PathLike[str],
    seeds: Sequence[int],
    device: Device | None = None,
    *,
    set: Overrides | None = None,
    data: str | Path | Mapping[str, Any] | DataSource | None = None,
    proof: bool = True,
    **options: Any,
) -> dict[int, Proof | None]:
    """Writes a folder of baked chips, `chip<seed>.onnx`, that share the data of all that no array holds.

    Args:
        model: as for `bake`.
        folder: made here; it must not exist.
        seeds: which chips.
        device: as for `bake`.
        set: as for `bake`.
        data: as for `BakedModel.save`.
        proof: likewise.
        options: those of `bake`.

    Returns:
        The proof of each chip, by seed.

    Raises:
        InputError: as for `bake` and `BakedModel.save`, or the folder exists; then nothing is written.

    """
    target = Path(folder)
    if target.exists():
        raise InputError(f"{target} exists already: give another folder.")
    if not seeds:
        raise InputError("There are no seeds: give one at least.")
    rewriting = ("only", "exclude", "map", "share", "stored")
    chosen = {name: options.pop(name) for name in rewriting if name in options}
    emulated = opened(model, device, set=set, **chosen)
    proofs: dict[int, Proof | None] = {}
    with unfinished_folder(target) as work:
        chips = work / target.name
        chips.mkdir()
        shared: dict[str, ir.ExternalTensor] = {}
        for seed in seeds:
            baked = bake(emulated, set=set if device is None else None, seed=seed, **options)
            if not proofs:
                shared = _write_shared(baked, chips)
            for name, tensor in shared.items():
                baked._model.graph.initializers[name].const_value = tensor
            path = chips / f"chip{seed}.onnx"
            _save_beside(baked._model, path)
            proofs[seed] = baked._prove(path, data) if proof else None
        os.replace(chips, target)
    return proofs


def read_baked(model: ModelSource) -> BakedChip | None:
    """The chip that a baked model holds, None for any other model.

    Raises:
        InputError: the file is no ONNX model, or its record is damaged.

    """
    if isinstance(model, ir.Model):
        name, text = "The model", model.metadata_props.get(BAKED_KEY)
    else:
        in_hand = isinstance(model, onnx.ModelProto)
        name = "The model" if in_hand else f"Model {os.fspath(model)}"
        proto = model if isinstance(model, onnx.ModelProto) else read_proto(Path(model))
        text = next((prop.value for prop in proto.metadata_props if prop.key == BAKED_KEY), None)
    return None if text is None else BakedChip.from_json(text, name)


def opened(
    model: ModelSource | EmulatedModel,
    device: Device | None,
    *,
    set: Overrides | None = None,
    only: str | None = None,
    exclude: str | None = None,
    map: Sequence[Rule] = (),
    share: Share | None = None,
    stored: str | None = None,
) -> EmulatedModel:
    """A rewritten model, or a plain one rewritten for `device`.

    Raises:
        InputError: as for `bake`.

    """
    if isinstance(model, EmulatedModel):
        return model
    name = f"Model {os.fspath(model)}" if isinstance(model, str | os.PathLike) else "The model"
    facts = read_proto(Path(model)) if isinstance(model, str | os.PathLike) else model
    baked = read_baked(facts)
    if baked is not None:
        raise InputError(f"{name} is baked already ({baked.in_words}): give the model that it was made from.")
    written = read_manifest(facts, name)
    if written is None and device is None:
        raise InputError(f"{name} is not rewritten and has no chips: give a device.")
    rewriting = {"device": device, "only": only, "exclude": exclude, "share": share, "stored": stored, "map": map}
    given = next((each for each, value in rewriting.items() if value), None)
    if written is not None:
        if given is not None:
            raise InputError(f"{name} is rewritten already: leave out '{given}', or give the original model.")
        return EmulatedModel.open(model)
    return rewrite(
        model, device or "", only, exclude, set, share or "by-content", stored, map,  # type: ignore[arg-type]
    )  # fmt: skip


def _write_shared(baked: BakedModel, folder: Path) -> dict[str, ir.ExternalTensor]:
    """Writes what no array holds to one file; gives where each tensor lies in it, by name."""
    places: dict[str, ir.ExternalTensor] = {}
    with (folder / _SHARED).open("wb") as file:
        for name, value in baked._model.graph.initializers.items():
            tensor = value.const_value
            if name in baked._stored or tensor is None or tensor.nbytes < _SHARED_BYTES:
                continue
            content = tensor.tobytes()
            file.write(b"\0" * (-file.tell() % 64))
            places[name] = ir.ExternalTensor(
                _SHARED,
                file.tell(),
                len(content),
                tensor.dtype,
                shape=ir.Shape(sizes_of(tensor)),
                name=name,
                base_dir=folder,
            )
            file.write(content)
    return places


def _save_beside(model: ir.Model, path: Path) -> None:
    """Writes a model whose stored values lie in its file, and whose other large tensors lie beside it already."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    if (
        sum(each.nbytes for each in tensors if each is not None and not isinstance(each, ir.ExternalTensor))
        > LARGEST_FILE_BYTES
    ):
        raise InputError(f"{path.name} would hold stored values of more than 1.9 GB: bake its chips one by one.")
    onnx.save(ir.to_proto(model), path)
