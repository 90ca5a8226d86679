"""Writes a PyTorch model as an ONNX file that emu can rewrite, once onnxruntime computes from it what PyTorch does.

`onnx_of` makes the graph in memory; `export` proves it and writes it, for a folder of Hugging Face or any module.
"""

import ast
import contextlib
import ctypes
import inspect
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emu.errors import InputError
from emu.train.folders import BESIDE_THE_MODEL, TASKS, load_model, reason

Example = Mapping[str, Tensor]
Axes = Mapping[str, Mapping[int, str]]
Exporter = Literal["auto", "optimum", "torch"]

OPSETS = range(14, 24)  # where the attention of PyTorch became operators, to the newest of its tracing exporter
BATCH, SEQUENCE = "batch", "sequence"
TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")

_TOKENS, _FEWER_TOKENS, _SHORT_TEXT = 8, 5, 3  # of an example, of one of another length, of the text that is padded
_OLDEST_OPSET_OF_TORCH_EXPORT = 18
_LARGEST_FILE_BYTES = 1_900_000_000  # a protobuf message must stay below 2 GiB


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: the .onnx file.
        inputs: shape of each input by name; a free size is a name.
        outputs: shape of each output by name.
        largest_difference: between onnxruntime's and PyTorch's outputs, as a share of an output's largest magnitude.
        exporter: which one made the graph, `torch` or `optimum`.
        opset: version of ONNX's operators.
        size_bytes: of the file, and of its external data if there are any.
        copied: names of the files that were copied beside it.
    """

    path: Path
    inputs: Mapping[str, tuple[int | str, ...]]
    outputs: Mapping[str, tuple[int | str, ...]]
    largest_difference: float
    exporter: str
    opset: int
    size_bytes: int
    copied: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {**asdict(self), "path": str(self.path)}


def onnx_of(
    model: nn.Module,
    example: Example,
    *,
    opset: int = 17,
    dynamic: Axes | None = None,
    outputs: Sequence[str] | None = None,
) -> onnx.ModelProto:
    """The graph of a model, in memory.

    PyTorch's tracing exporter makes it: it names nodes after the model's modules and writes every matrix product
    plainly. Where it fails (decoders of transformers 4.57), the one based on torch.export does, whose opset is 18 at
    least and whose nodes are then named in the same way.

    Args:
        model: exported in evaluation mode; its training flags are restored.
        example: a tensor for each argument of `forward` that becomes an input, by name.
        opset: version of ONNX's operators, 14 to 23.
        dynamic: names of the free axes of each input. By default axis 0 of every input is `batch`, and axis 1 of
            `input_ids`, `attention_mask`, `token_type_ids` and `position_ids` is `sequence`. Which axes of the
            outputs follow is measured.
        outputs: which outputs, by the keys of what the model gives (all of its tensors by default), or the names of
            those of a model that gives a tensor or a tuple (by default `output`, or `output_0` and so on).

    Returns:
        A model of which the same weights always give the same bytes. Above 2 GB it must be saved with external data.

    Raises:
        InputError: the example does not fit the model, an output is unknown, or no exporter can write the model.
    """
    _check_opset(opset)
    with _Source.prepared(model, example, dynamic, outputs) as source:
        failures = []
        for attempt in (_traced, _from_torch_export):
            try:
                return attempt(source, opset)
            except InputError as error:
                failures.append(str(error))
    raise InputError(f"{type(model).__name__} cannot be exported: {'; '.join(failures)}.")


def example_inputs(model: nn.Module) -> dict[str, Tensor]:
    """Inputs for a model of transformers, from its configuration: always the same two samples.

    Images are normal random numbers `[2, num_channels, height, width]` (float32). Texts are 8 random tokens `[2, 8]`
    (int64), of which the second text fills 3, with the attention mask and token types that the model takes.

    Raises:
        InputError: it is no model of transformers, or one whose inputs are neither an image nor one text.
    """
    config = getattr(model, "config", None)
    name = type(model).__name__
    if config is None or not hasattr(model, "main_input_name"):
        raise InputError(f"{name} is no model of transformers: give an example, a tensor for each input by name.")
    taken = _parameters(model)
    main = model.main_input_name
    random = torch.Generator().manual_seed(0)
    both = {"pixel_values", "input_ids"} <= taken.keys()
    if main == "pixel_values" and not both and hasattr(config, "image_size") and hasattr(config, "num_channels"):
        size = config.image_size
        height, width = (size, size) if isinstance(size, int) else (int(each) for each in size)
        return {"pixel_values": torch.randn((2, config.num_channels, height, width), generator=random)}
    if main != "input_ids" or both or config.is_encoder_decoder or not hasattr(config, "vocab_size"):
        raise InputError(
            f"{name} takes {', '.join(each for each in taken if each != 'kwargs')}: inputs are made for models of one "
            "image or one text only, so give an example, a tensor for each input by name."
        )
    inputs = {"input_ids": torch.randint(0, config.vocab_size, (2, _TOKENS), generator=random)}
    if "attention_mask" in taken:
        mask = torch.ones((2, _TOKENS), dtype=torch.int64)
        mask[1, _SHORT_TEXT:] = 0
        inputs["attention_mask"] = mask
    if "token_type_ids" in taken and (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs["token_type_ids"] = torch.randint(0, config.type_vocab_size, (2, _TOKENS), generator=random)
    return inputs


def export(
    source: str | Path | nn.Module,
    path: str | Path,
    *,
    exporter: Exporter = "auto",
    task: str | None = None,
    opset: int = 17,
    overwrite: bool = False,
    example: Example | None = None,
    tolerance: float = 1e-4,
) -> Exported:
    """Writes a model as ONNX, once onnxruntime has computed from it what PyTorch computes.

    Both compute samples in batches of 1, 2 and 3, and texts of another length too. With a folder as the source,
    config.json and the files of its processor and tokenizer are copied beside the model.

    Args:
        source: a folder of Hugging Face (config.json, model.safetensors), or a module.
        path: the .onnx file, replaced atomically. Tensors of more than 1.9 GB go to `<path>.data` beside it.
        exporter: `torch` is `onnx_of`; `optimum` is that of the package optimum-onnx; `auto` takes the first
            graph that passes of PyTorch's tracing exporter, optimum (if it is installed) and torch.export.
        task: of the names in `TASKS`, for a folder; by default the class in config.json is used.
        opset: version of ONNX's operators, 14 to 23.
        overwrite: replace files that exist.
        example: inputs by name, two samples at best; made from the configuration for models of transformers.
        tolerance: the largest difference allowed, as a share of an output's largest magnitude. Rounding of float32
            alone gives about 1e-6.

    Raises:
        InputError: the source cannot be read, the target cannot be written, no exporter can write the model, or
            its outputs differ by more than the tolerance; nothing is written.
    """
    target = Path(path)
    _check_opset(opset)
    _check_target(target, overwrite)
    folder = None if isinstance(source, nn.Module) else Path(source)
    beside = _files_beside(folder, target, overwrite)
    model = source if isinstance(source, nn.Module) else load_model(Path(source), task)
    example = example_inputs(model) if example is None else example
    with _Source.prepared(model, example) as prepared, _folder_beside(target) as work:
        written = work / target.name
        proto, used, difference = _first_that_agrees(prepared, exporter, task, opset, tolerance, written)
        size = sum(each.stat().st_size for each in work.iterdir())
        for file in beside:
            shutil.copyfile(file, work / file.name)
        names = [*(each.name for each in beside), _data_of(target).name, target.name]
        for name in names:  # the model last: whoever sees it finds the others
            if (work / name).exists():
                os.replace(work / name, target.parent / name)
    return Exported(
        path=target,
        inputs=_shapes(proto.graph.input),
        outputs=_shapes(proto.graph.output),
        largest_difference=difference,
        exporter=used,
        opset=_opset(proto),
        size_bytes=size,
        copied=tuple(each.name for each in beside),
    )


# A model that is ready to be exported


@dataclass(frozen=True)
class _Source:
    """A model in evaluation mode, what goes in and what comes out."""

    model: nn.Module
    example: dict[str, Tensor]  # in the order of forward
    dynamic: Axes
    asked: Sequence[str] | None  # the wanted outputs
    outputs: dict[str, tuple[int | str | None, ...]]  # shapes: a free size is a name, one that is no input's is None

    @classmethod
    @contextlib.contextmanager
    def prepared(
        cls, model: nn.Module, example: Example, dynamic: Axes | None = None, outputs: Sequence[str] | None = None
    ) -> Iterator["_Source"]:
        """Makes the model ready, and restores it."""
        taken, name = _parameters(model), type(model).__name__
        unknown = [each for each in example if each not in taken]
        if unknown or not example:
            given = f"no input '{unknown[0]}'" if unknown else "inputs, and the example is empty"
            raise InputError(f"{name} takes {given}: its inputs are {', '.join(taken)}.")
        weight = next(model.parameters(), torch.empty(0))
        ordered = {each: example[each].detach().to(weight.device) for each in taken if each in example}
        if dynamic is None:
            dynamic = {each: _free_axes(each, tensor) for each, tensor in ordered.items()}
        with _inference(model):
            source = cls(model, ordered, dynamic, outputs, {})
            source.outputs.update(source.measured_shapes())
            yield source

    def computed(self, inputs: Example) -> dict[str, NDArray[Any]]:
        """What PyTorch computes."""
        try:
            with torch.no_grad():
                outputs = _named(self.model(**inputs), self.asked)
        except Exception as error:  # a model can fail in every way
            name, shapes = type(self.model).__name__, _shown(inputs)
            raise InputError(f"{name} fails on inputs of {shapes}: {reason(error)}.") from error
        missing = [name for name in self.asked or () if name not in outputs]
        if missing or not outputs:
            what = f"no output '{missing[0]}'" if missing else "no output that is a tensor"
            raise InputError(f"{type(self.model).__name__} gives {what}, but {', '.join(outputs) or 'nothing'}.")
        return {name: outputs[name].cpu().numpy() for name in self.asked or outputs}

    def resized(self, **sizes: int) -> dict[str, Tensor]:
        """The example with other sizes of its free axes, by name: the samples in reverse, the same ones again."""
        result = {}
        for name, tensor in self.example.items():
            for axis, symbol in self.dynamic.get(name, {}).items():
                size = sizes.get(symbol, tensor.shape[axis])
                index = torch.arange(size, device=tensor.device)
                index = (size - 1 - index if axis == 0 and symbol in sizes else index) % tensor.shape[axis]
                tensor = tensor.index_select(axis, index)
            result[name] = tensor
        return result

    def sizes(self) -> dict[str, int]:
        """The size of each free axis in the example."""
        return {
            symbol: self.example[name].shape[axis]
            for name, axes in self.dynamic.items()
            if name in self.example
            for axis, symbol in axes.items()
        }

    def measured_shapes(self) -> dict[str, tuple[int | str | None, ...]]:
        """Shapes of the outputs, found by changing one free size after the other."""
        shapes = {name: each.shape for name, each in self.computed(self.example).items()}
        found: dict[str, list[int | str | None]] = {name: list(shape) for name, shape in shapes.items()}
        for symbol, size in self.sizes().items():
            other = size + 1 if symbol == BATCH or size == 1 else size - 1
            for name, array in self.computed(self.resized(**{symbol: other})).items():
                for axis, (before, after) in enumerate(zip(shapes[name], array.shape, strict=True)):
                    if before != after:
                        fits = (before, after) == (size, other) and isinstance(found[name][axis], int)
                        found[name][axis] = symbol if fits else None
        return {name: tuple(shape) for name, shape in found.items()}

    def variations(self) -> list[dict[str, Tensor]]:
        """Inputs on which onnxruntime and PyTorch must agree."""
        sizes = self.sizes()
        changes: list[dict[str, int]] = [{BATCH: size} for size in (1, 2, 3)] if BATCH in sizes else [{}]
        for symbol, size in sizes.items():
            if symbol != BATCH:
                changes.append({symbol: _FEWER_TOKENS if size == _TOKENS else max(1, size - 1)})
        return [self.resized(**change) for change in changes]


@contextlib.contextmanager
def _inference(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and a configuration that gives named outputs and no cache; restored afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    config, wanted = getattr(model, "config", None), {"use_cache": False, "return_dict": True}
    kept = {name: getattr(config, name) for name in wanted if hasattr(config, name)}
    disabled = logging.root.manager.disable
    try:
        model.eval()
        for name in kept:
            setattr(config, name, wanted[name])
        logging.disable(logging.WARNING)  # exporters report on themselves
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for name, value in kept.items():
            setattr(config, name, value)
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _giving_tensors(source: _Source) -> Iterator[list[str]]:
    """Lets `forward` give a tuple, which every exporter of PyTorch takes; yields the names of what it gave last."""
    model, given = source.model, list(source.outputs)
    forward, own = model.forward, "forward" in vars(model)

    def chosen(*arguments: Any, **named: Any) -> tuple[Tensor, ...]:
        outputs = _named(forward(*arguments, **named), source.asked)
        given[:] = [name for name in source.outputs if name in outputs]
        return tuple(outputs[name] for name in given)

    chosen.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    model.forward = chosen
    try:
        yield given
    finally:
        if own:
            model.forward = forward
        else:
            del model.forward


def _named(result: Any, asked: Sequence[str] | None) -> dict[str, Tensor]:
    """The tensors of what a model gives."""
    if isinstance(result, Mapping):
        return {name: each for name, each in result.items() if isinstance(each, Tensor)}
    tensors = [result] if isinstance(result, Tensor) else list(result) if isinstance(result, tuple | list) else []
    if not all(isinstance(each, Tensor) for each in tensors):
        tensors = []
    names = asked or (["output"] if isinstance(result, Tensor) else [f"output_{i}" for i in range(len(tensors))])
    return dict(zip(names, tensors, strict=False))


def _parameters(model: nn.Module) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(model.forward).parameters)


def _free_axes(name: str, tensor: Tensor) -> dict[int, str]:
    axes = {0: BATCH, 1: SEQUENCE} if name in TEXT_INPUTS else {0: BATCH}
    return {axis: symbol for axis, symbol in axes.items() if axis < tensor.ndim}


# Exporters: each gives a graph, or says why not


def _traced(source: _Source, opset: int) -> onnx.ModelProto:
    """By PyTorch's tracing (TorchScript) exporter."""

    def write(source: _Source, path: Path) -> None:
        free = {name: dict(axes) for name, axes in source.dynamic.items() if axes}
        for name, shape in source.outputs.items():
            free[name] = {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
        torch.onnx.export(
            source.model,
            (),
            str(path),  # a file, as weights over 2 GB come as more files
            kwargs=source.example,
            input_names=list(source.example),
            output_names=list(source.outputs),
            dynamic_axes=free,
            opset_version=opset,
            dynamo=False,
        )

    return _finished(_by_pytorch("tracing", write, source), source)


def _from_torch_export(source: _Source, opset: int) -> onnx.ModelProto:
    """By PyTorch's exporter that is based on torch.export."""

    def write(source: _Source, path: Path) -> None:
        program = torch.onnx.export(
            source.model,
            (),
            kwargs=source.example,
            input_names=list(source.example),
            output_names=list(source.outputs),
            dynamic_shapes={name: dict(source.dynamic.get(name, {})) for name in source.example},
            opset_version=max(opset, _OLDEST_OPSET_OF_TORCH_EXPORT),
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.save(str(path), external_data=True)

    proto = _by_pytorch("torch.export", write, source)
    _name_after_modules(proto)
    return _finished(proto, source)


def _by_pytorch(exporter: str, write: Callable[[_Source, Path], None], source: _Source) -> onnx.ModelProto:
    """What an exporter writes, of as many outputs as the model gives while it is exported: some then give fewer."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            with _giving_tensors(source) as given, _reporting(exporter):
                write(source, path)
        except InputError:
            if given == list(source.outputs) or not given:
                raise
            fewer = replace(source, outputs={name: source.outputs[name] for name in given})
            with _giving_tensors(fewer), _reporting(exporter):
                write(fewer, path)
        return onnx.load(path)


def _from_optimum(source: _Source, opset: int, task: str | None = None) -> onnx.ModelProto:
    """By the exporter of optimum, which patches what PyTorch's tracing cannot follow."""
    try:
        optimum = import_module("optimum.exporters.onnx")
    except ImportError as error:
        raise InputError(f'optimum needs a package: pip install "emu-onnx[optimum]" ({reason(error)})') from None
    with tempfile.TemporaryDirectory() as folder:
        with _reporting("optimum"):
            optimum.onnx_export_from_model(
                source.model,
                Path(folder),
                opset=opset,
                task=task or _task_of(source.model),
                do_validation=False,
                device=next(iter(source.example.values())).device.type,
            )
        files = list(Path(folder).glob("*.onnx"))
        if len(files) != 1:
            raise InputError(f"optimum makes {len(files)} models of {type(source.model).__name__}, expected one")
        return _finished(onnx.load(files[0]), source)


@contextlib.contextmanager
def _reporting(exporter: str) -> Iterator[None]:
    """Turns whatever goes wrong into one sentence: exporters fail in every way that a model can be unusual."""
    try:
        with _without_printing():
            yield
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(f"{exporter} fails with {type(cause).__name__} ({reason(cause)})") from error


@contextlib.contextmanager
def _without_printing() -> Iterator[None]:
    """Sends stdout nowhere, that of C++ too: PyTorch prints whole graphs there when it fails."""
    flush = ctypes.CDLL(None).fflush
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        flush(None)
        kept = os.dup(1)
        os.dup2(nowhere.fileno(), 1)
        try:
            yield
        finally:
            flush(None)
            os.dup2(kept, 1)
            os.close(kept)


def _task_of(model: nn.Module) -> str:
    name = type(model).__name__
    if "LMHead" in name:
        return "text-generation"
    return next((task for task, head in TASKS.items() if head and head in name), "feature-extraction")


def _finished(proto: onnx.ModelProto, source: _Source) -> onnx.ModelProto:
    """Sizes named alike by every exporter, and no trace of the machine: the same weights give the same bytes."""
    for value in proto.graph.input:
        if value.name in source.example:
            free = source.dynamic.get(value.name, {})
            shape = source.example[value.name].shape
            _set_shape(value, [free.get(axis, size) for axis, size in enumerate(shape)])
        elif value.name in TEXT_INPUTS:
            _set_shape(value, [BATCH, SEQUENCE])
    for value in proto.graph.output:
        _set_shape(value, source.outputs.get(value.name, ()))
    proto.graph.ClearField("value_info")  # shapes between nodes, by names that no input has
    holders = [proto, proto.graph, *proto.graph.input, *proto.graph.output, *proto.graph.initializer]
    for each in holders:
        each.ClearField("doc_string")
        each.ClearField("metadata_props")
    for node in proto.graph.node:
        node.doc_string = ""  # empty, not absent: the bytes of the shipped models
        node.ClearField("metadata_props")
    return proto


def _set_shape(value: onnx.ValueInfoProto, shape: Sequence[int | str | None]) -> None:
    dims = value.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for dim, size in zip(dims, shape, strict=True):
        if isinstance(size, int):
            dim.dim_value = size
        elif size is not None:
            dim.dim_param = size


def _name_after_modules(proto: onnx.ModelProto) -> None:
    """Names nodes as tracing does: /transformer/h.0/attn/c_attn/Gemm."""
    used: dict[str, int] = {}
    for node in proto.graph.node:
        notes = {each.key: each.value for each in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]
        parts, within = [], ""
        for scope in filter(None, scopes):
            parts.append(scope.removeprefix(f"{within}."))
            within = scope
        name = "/".join(["", *parts, node.op_type])
        count = used[name] = used.get(name, -1) + 1
        node.name = f"{name}_{count}" if count else name


# Agreement of onnxruntime and PyTorch


def _first_that_agrees(
    source: _Source, exporter: Exporter, task: str | None, opset: int, tolerance: float, path: Path
) -> tuple[onnx.ModelProto, str, float]:
    """The first exporter's graph that passes, written to `path`; its exporter and its largest difference."""

    def optimum(source: _Source, opset: int) -> onnx.ModelProto:
        return _from_optimum(source, opset, task)

    attempts: dict[str, list[tuple[str, Callable[[_Source, int], onnx.ModelProto]]]] = {
        "torch": [("torch", _traced), ("torch", _from_torch_export)],
        "optimum": [("optimum", optimum)],
        "auto": [("torch", _traced), ("optimum", optimum), ("torch", _from_torch_export)],
    }
    if exporter not in attempts:
        raise InputError(f"There is no exporter '{exporter}': choose {', '.join(attempts)}.")
    failures = []
    for used, attempt in attempts[exporter]:
        try:
            proto = attempt(source, opset)
            _save(proto, path)
            difference = _largest_difference(path, source)
        except InputError as error:
            failures.append(str(error))
            continue
        if difference <= tolerance:
            return proto, used, difference
        failures.append(f"onnxruntime and PyTorch differ by {difference:.1e}, more than the {tolerance:.0e} allowed")
    name = type(source.model).__name__
    raise InputError(f"{name} cannot be exported: {'; '.join(dict.fromkeys(failures))}; nothing was written.")


def _save(proto: onnx.ModelProto, path: Path) -> None:
    """Writes a graph; one with external data is left without its tensors."""
    large = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > _LARGEST_FILE_BYTES
    onnx.save(proto, path, save_as_external_data=large, location=_data_of(path).name)


def _largest_difference(path: Path, source: _Source) -> float:
    """Between onnxruntime's and PyTorch's outputs, over all variations of the example."""
    try:
        onnx.checker.check_model(path, full_check=True)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the checker and onnxruntime have exceptions of their own, of no common kind
        raise InputError(f"onnxruntime cannot load the graph ({reason(error)})") from None
    names = [each.name for each in session.get_outputs()]
    unknown = [name for name in names if name not in source.outputs]
    if unknown:
        raise InputError(f"the graph has an output '{unknown[0]}' that the model does not give")
    differences, magnitudes = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
    for inputs in source.variations():
        inputs = _inputs_of(session, inputs)
        expected = source.computed(inputs)
        try:
            computed = session.run(names, {name: each.cpu().numpy() for name, each in inputs.items()})
        except Exception as error:
            raise InputError(f"onnxruntime fails on {_shown(inputs)} ({reason(error)})") from None
        for name, array in zip(names, computed, strict=True):
            differences[name] = max(differences[name], _difference(array, expected[name]))
            magnitudes[name] = max(magnitudes[name], float(np.abs(expected[name]).max(initial=0)))
    return max(_share(differences[name], magnitudes[name]) for name in names)


def _inputs_of(session: Any, inputs: Example) -> dict[str, Tensor]:
    """The inputs that a graph takes, with the positions of tokens where it wants them."""
    result = {}
    for name in (each.name for each in session.get_inputs()):
        if name in inputs:
            result[name] = inputs[name]
        elif name == "position_ids" and "attention_mask" in inputs:
            result[name] = (inputs["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
        else:
            raise InputError(f"the graph has an input '{name}' that the example lacks")
    return result


def _share(difference: float, magnitude: float) -> float:
    if not difference:
        return 0.0
    return difference / magnitude if magnitude else float("inf")


def _difference(computed: NDArray[Any], expected: NDArray[Any]) -> float:
    """Infinite where shapes differ or anything is not a number."""
    if computed.shape != expected.shape:
        return float("inf")
    if not computed.size:
        return 0.0
    left, right = computed.astype(np.float64), expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = float(np.abs(left - right).max())
    return difference if np.isfinite(difference) else float("inf")


# Files


def _check_opset(opset: int) -> None:
    if opset not in OPSETS:
        raise InputError(f"The opset is {opset}: choose {OPSETS[0]} to {OPSETS[-1]}.")


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_dir():
        raise InputError(f"{target} is a folder: give the name of a file in it (-o {target / 'model.onnx'}).")
    for file in (target, _data_of(target)):
        if file.exists() and not overwrite:
            raise InputError(f"{file} exists already: give another output with -o, or --overwrite.")
    if not target.parent.is_dir():
        raise InputError(f"There is no folder {target.parent} to write {target.name} to: create it first.")


def _data_of(path: Path) -> Path:
    """Where the tensors of a large model go."""
    return path.with_name(f"{path.name}.data")


def _files_beside(folder: Path | None, target: Path, overwrite: bool) -> list[Path]:
    """The files of a folder that are to be copied beside the model: those that differ from what lies there."""
    if folder is None or not folder.is_dir() or folder.samefile(target.parent):
        return []
    files = [folder / name for name in BESIDE_THE_MODEL if (folder / name).is_file()]
    files = [file for file in files if not _same(file, target.parent / file.name)]
    for there in (target.parent / file.name for file in files):
        if there.exists() and (there.is_dir() or not overwrite):
            raise InputError(
                f"{there} exists already and is not that of {folder}: write to a folder of its own, or --overwrite."
            )
    return files


def _same(left: Path, right: Path) -> bool:
    return right.is_file() and left.read_bytes() == right.read_bytes()


@contextlib.contextmanager
def _folder_beside(target: Path) -> Iterator[Path]:
    """A temporary folder on the same disk as the target."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None


def _shapes(values: Sequence[onnx.ValueInfoProto]) -> dict[str, tuple[int | str, ...]]:
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else dim.dim_param for dim in value.type.tensor_type.shape.dim
        )
        for value in values
    }


def _opset(proto: onnx.ModelProto) -> int:
    return next((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), 0)


def _shown(inputs: Example) -> str:
    return ", ".join(f"{name} {list(each.shape)}" for name, each in inputs.items())
