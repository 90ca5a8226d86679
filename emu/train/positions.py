"""Positions of the rows and keys of a forward in PyTorch, as the rewritten model computes them from the same inputs."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor


class Positions:
    """What nodes of a rewritten model read as `position` and `keys`, for what a forward is given."""

    def __init__(self, model: onnx.ModelProto | None) -> None:
        self._session = None
        if model is not None:
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = 1
            self._session = onnxruntime.InferenceSession(model.SerializeToString(), options)
            self._types = {
                each.name: onnx.helper.tensor_dtype_to_np_dtype(each.type.tensor_type.elem_type)
                for each in model.graph.input
            }

    def of(self, given: Mapping[str, Any]) -> dict[str, NDArray[np.int64]]:
        """The values by name; none where a forward is not given what they follow from: then rows count from 0.

        Args:
            given: what the forward is given, by the names of the exported model's inputs.
        """
        if self._session is None or not all(isinstance(given.get(name), Tensor) for name in self._types):
            return {}
        feeds = {name: given[name].detach().cpu().numpy().astype(kind) for name, kind in self._types.items()}
        names = [each.name for each in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))
