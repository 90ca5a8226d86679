"""Sessions of stock onnxruntime that know emu's operators."""

import os
import threading
import weakref
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime

from emu.contract.manifest import MANIFEST_KEY, Manifest
from emu.errors import InputError
from emu.runtime.functions import provide_functions
from emu.runtime.library import library_path

Ops = Literal["native", "python"]

# What was registered with options that are still in use: onnxruntime takes a domain once.
_registered: "weakref.WeakKeyDictionary[onnxruntime.SessionOptions, Ops]" = weakref.WeakKeyDictionary()

# Creating sessions with custom-op domains from several threads at once is not safe in onnxruntime (issue 27089).
_creation = threading.Lock()


def register(options: onnxruntime.SessionOptions, ops: Ops = "native") -> None:
    """Make emu's operators known to sessions created with `options`; again for the same ones changes nothing.

    Args:
        options: changed in place.
        ops: `native` for the C++ library, `python` for the NumPy twin (slow; an oracle).

    Raises:
        InputError: the native library is not installed, `ops` is unknown, or the options have the other operators.
    """
    before = _registered.get(options)
    if before == ops:
        return
    if before is not None:
        raise InputError(f"These options have emu's {before} operators already: make other ones for ops '{ops}'.")
    if ops == "native":
        options.register_custom_ops_library(str(library_path()))
    elif ops == "python":
        from emu.reference.custom_ops import register_python_ops

        register_python_ops(options)
    else:
        raise InputError(f"ops is '{ops}'; expected 'native' or 'python'")
    _registered[options] = ops


class Session(onnxruntime.InferenceSession):  # type: ignore[misc]  # onnxruntime has no type hints
    """An `onnxruntime.InferenceSession` that also takes NumPy scalars (`np.int64(7)`) for the scalar controls."""

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        """Run the model; see `onnxruntime.InferenceSession.run`."""
        feeds = {name: np.asarray(value) if np.isscalar(value) else value for name, value in input_feed.items()}
        return super().run(output_names, feeds, run_options)


class _PythonOpsSession(Session):
    """Raises what a Python operator could not: an exception that left its body would end the process."""

    def run(self, output_names: Any, input_feed: Any, run_options: Any = None) -> Any:
        from emu.reference.custom_ops import pending_error

        pending_error()  # forget what an earlier, failed run left behind
        try:
            return super().run(output_names, input_feed, run_options)
        finally:
            # Also when the run itself failed: a later node may have choked on what the failed operator left.
            error = pending_error()
            if error is not None:
                raise error


def session(
    model: Any,
    ops: Ops = "native",
    threads: int | None = None,
    options: onnxruntime.SessionOptions | None = None,
    **session_arguments: Any,
) -> Session:
    """Open a rewritten (or plain) model in stock onnxruntime, on the CPU.

    Args:
        model: path (str or PathLike), serialized model (bytes), `onnx.ModelProto` or the result of `emu.rewrite`.
        ops: `native` or `python`, see `register`.
        threads: threads of one product; None for onnxruntime's choice.
        options: further session options; changed in place.
        session_arguments: passed on to `onnxruntime.InferenceSession`.

    Raises:
        InputError: the model cannot be loaded, with onnxruntime's reason, or its device needs a function that is not
            registered.
    """
    if options is None:
        options = onnxruntime.SessionOptions()
        # Silence: the controls are initializers that are also inputs, on purpose, and every error is raised anyway.
        options.log_severity_level = 4
    if threads is not None:
        options.intra_op_num_threads = threads
    register(options, ops)
    if hasattr(model, "manifest"):
        model = model.model
    if isinstance(model, onnx.ModelProto):
        source: str | bytes = model.SerializeToString()
    elif isinstance(model, bytes):
        source = model
    else:
        source = os.fspath(model)
    if ops == "python":
        source = _completed(source)
    session_arguments.setdefault("providers", ["CPUExecutionProvider"])
    kind = Session if ops == "native" else _PythonOpsSession
    with _creation:
        name = source if isinstance(source, str) else "the model"
        try:
            opened = kind(source, sess_options=options, **session_arguments)
        except Exception as error:
            raise InputError(f"{name}: onnxruntime cannot load it: {_one_line(error)}") from error
    text = opened.get_modelmeta().custom_metadata_map.get(MANIFEST_KEY)
    if text is None:
        return opened
    manifest = Manifest.from_json(text, f"Model {source}" if isinstance(source, str) else "The model")
    try:
        provide_functions(manifest, native=ops == "native")
    except InputError as error:
        raise InputError(f"{name}: {str(error).rstrip('.')}.") from None
    return opened


def _completed(source: str | bytes) -> str | bytes:
    """The model with attributes that earlier versions did not write: a Python operator cannot do without."""
    from emu.contract.schema import DEFAULTS, attribute_types

    def loaded(external_data: bool) -> onnx.ModelProto:
        if isinstance(source, bytes):
            return onnx.load_model_from_string(source)
        return onnx.load(source, load_external_data=external_data)

    def lacking(model: onnx.ModelProto) -> list[tuple[onnx.NodeProto, str]]:
        sites = [node for node in model.graph.node if node.domain == "emu"]
        return [
            (node, name)
            for node in sites
            for name in DEFAULTS
            if name in attribute_types(node.op_type) and all(each.name != name for each in node.attribute)
        ]

    try:
        if not lacking(loaded(external_data=False)):
            return source
        model = loaded(external_data=True)
    except Exception:
        return source  # onnxruntime says what is wrong with it
    for node, name in lacking(model):
        node.attribute.append(onnx.helper.make_attribute(name, DEFAULTS[name]))
    completed: bytes = model.SerializeToString()
    return completed


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
