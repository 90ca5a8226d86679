"""The twin as Python custom ops of onnxruntime-extensions: a rewritten model runs where no native library can be built.

An exception in the body of a Python op ends the process, so a failing op returns NaN and keeps its exception for
`pending_error`, which the caller of `InferenceSession.run` asks afterwards, on the same thread.
"""

import threading
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT, OPERATORS, QUANTIZED, STORED, attribute_types
from emu.reference.crossbar import (
    crossbar_matmul,
    crossbar_matmul_dynamic,
    crossbar_matmul_quantized,
    faulty_weight,
)

_definition = threading.Lock()
_defined = False
_of_thread = threading.local()


def register_python_ops(options: onnxruntime.SessionOptions) -> None:
    """Make the operators of the domain `emu`, run by NumPy, known to sessions with these options.

    The ops are defined once per process. After every `run`, also one that raised, ask `pending_error`.
    """
    import onnxruntime_extensions

    global _defined
    with _definition:
        # A second definition of the same name would break every later session of the process.
        if not _defined:
            _define(STORED, crossbar_matmul, _product_shape)
            _define(QUANTIZED, crossbar_matmul_quantized, _product_shape)
            _define(DYNAMIC, crossbar_matmul_dynamic, _product_shape)
            _define(FAULTY_WEIGHT, faulty_weight, lambda w, *_: w.shape)
            _defined = True
    options.register_custom_ops_library(onnxruntime_extensions.get_library_path())


def pending_error() -> BaseException | None:
    """Return the first exception of an op that ran on this thread since the last call, None when all went well."""
    error: BaseException | None = getattr(_of_thread, "error", None)
    _of_thread.error = None
    return error


def _define(
    op_type: str,
    operator: Callable[..., NDArray[np.float32]],
    shape_of: Callable[..., tuple[int, ...]],
) -> None:
    """Define one operator with the inputs and attributes of the contract."""
    from onnxruntime_extensions import PyCustomOpDef, onnx_op

    types = {"float32": PyCustomOpDef.dt_float, "int8": PyCustomOpDef.dt_int8, "int64": PyCustomOpDef.dt_int64}
    kinds = {int: PyCustomOpDef.dt_int64, str: PyCustomOpDef.dt_string}
    attributes = {name: kinds[kind] for name, kind in attribute_types(op_type).items()}

    def body(*inputs: NDArray[Any], **attributes: int | str) -> NDArray[np.float32]:
        try:
            y = operator(*inputs, **attributes)
        except BaseException as error:  # also KeyboardInterrupt: nothing may leave this function
            if getattr(_of_thread, "error", None) is None:
                _of_thread.error = error
            y = np.full(shape_of(*inputs), np.nan, dtype=np.float32)
        return cast(NDArray[np.float32], y.view(_Unlisted))

    inputs = [types[each.type] for each in OPERATORS[op_type].inputs]
    define = onnx_op(op_type=f"emu::{op_type}", inputs=inputs, outputs=[types["float32"]], attrs=attributes)
    define(body)


class _Unlisted(np.ndarray[Any, Any]):
    """An array whose `tolist` is the array: onnxruntime-extensions calls it on results, at 60 ns per float."""

    def tolist(self) -> Any:
        return np.asarray(self)


def _product_shape(x: NDArray[Any], w: NDArray[Any], *_: NDArray[Any]) -> tuple[int, ...]:
    """Return the shape of the product, or of its nearest guess for operands that have none."""
    try:
        batch = np.broadcast_shapes(x.shape[:-2], w.shape[:-2])
    except ValueError:
        batch = x.shape[:-2]
    return (*batch, *x.shape[-2:-1], *w.shape[-1:])
