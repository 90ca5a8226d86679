"""Convolutions against onnxruntime's own Conv, in turns on one thread: `python -m benchmarks.convolutions`.

Each shape is one node of the operator with a window: exact, with converters, and with noise besides.
"""

import argparse
import statistics
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import emu
from benchmarks.ratios import clean_session, seconds
from emu.contract.schema import STORED, plain

_LEAST_SECONDS = 0.1  # of clean runs
_CONVERTERS = {
    "dac.bits": 8.0, "dac.steps": 0.0, "dac.bound": 1.0, "adc.bits": 8.0, "adc.steps": 0.0, "adc.bound": 12.0,
    "read.output_noise": 0.0,
}  # fmt: skip


@dataclass(frozen=True)
class Convolution:
    """One square convolution of square images."""

    name: str
    channels: int
    kernels: int
    size: int  # of the window
    image: int
    stride: int = 1
    groups: int = 1
    batch: int = 1

    @property
    def padding(self) -> int:
        return 0 if self.stride == self.size else self.size // 2


CONVOLUTIONS = (
    Convolution("ResNet, 3 x 3, 64 channels", 64, 64, 3, 56),
    Convolution("ResNet, 3 x 3, 256 channels", 256, 256, 3, 14),
    Convolution("ResNet, 3 x 3, 512 channels", 512, 512, 3, 7),
    Convolution("ResNet, 1 x 1, 256 to 64 channels", 256, 64, 1, 56),
    Convolution("ResNet, stem of 7 x 7", 3, 64, 7, 224, stride=2),
    Convolution("DeiT-tiny, patches", 3, 192, 16, 224, stride=16, batch=8),
    Convolution("ViT-base, patches", 3, 768, 16, 224, stride=16, batch=8),
    Convolution("MobileNet, depthwise 3 x 3, 96 channels", 96, 96, 3, 112, groups=96),
    Convolution("ConvNeXt, depthwise 7 x 7, 384 channels", 384, 384, 7, 14, groups=384),
)


def clean_model(shape: Convolution, kernel: np.ndarray) -> onnx.ModelProto:
    """A Conv."""
    sides = {"strides": [shape.stride] * 2, "pads": [shape.padding] * 4, "group": shape.groups}
    conv = helper.make_node("Conv", ["x", "w"], ["y"], name="conv", kernel_shape=[shape.size] * 2, **sides)
    out = (shape.image + 2 * shape.padding - shape.size) // shape.stride + 1
    return _model(shape, conv, {"w": kernel}, out)


def emulated_model(shape: Convolution, kernel: np.ndarray, numbers: dict[str, float]) -> onnx.ModelProto:
    """The same as a node of the operator."""
    axis = f"{shape.size},{shape.stride},1,{shape.padding},{shape.padding}"
    attributes = {**plain(STORED), "window": f"{axis};{axis}", "entries": ",".join(numbers), "scaling": "tile_column"}
    if numbers:
        attributes |= {"dac": "absmax", "adc": "fixed", "tile_rows": 256, "tile_columns": 256}
    stack = np.swapaxes(kernel.reshape(shape.groups, shape.kernels // shape.groups, -1), 1, 2).copy()
    controls = {
        "device": np.asarray(list(numbers.values()), np.float32), "strength": np.ones(1, np.float32),
        "ranges": np.ones((1, 4), np.float32), "faults": np.zeros((0, 2), np.int64),
        **{name: np.int64(0) for name in ("seed", "read_seed", "sample")},
        "position": np.zeros(0, np.int64), "head": np.int64(-1),
    }  # fmt: skip
    constants = {"w": stack if shape.groups > 1 else stack[0], **controls}
    node = helper.make_node(STORED, ["x", *constants], ["y"], name="conv", domain="emu", **attributes)
    out = (shape.image + 2 * shape.padding - shape.size) // shape.stride + 1
    return _model(shape, node, constants, out)


def _model(shape: Convolution, node: onnx.NodeProto, constants: dict[str, Any], out: int) -> onnx.ModelProto:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [shape.batch, shape.channels, shape.image, shape.image])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [shape.batch, shape.kernels, out, out])
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("emu", 1)]
    return helper.make_model(
        helper.make_graph([node], "convolution", [x], [y], weights), opset_imports=opsets, ir_version=8
    )


def measure(shape: Convolution, pairs: int) -> dict[str, float]:
    """Ratios to the clean time by what is emulated, and that time in ms."""
    random = np.random.default_rng(0)
    x = random.standard_normal((shape.batch, shape.channels, shape.image, shape.image), np.float32)
    size = (shape.kernels, shape.channels // shape.groups, shape.size, shape.size)
    kernel = random.standard_normal(size, np.float32) * np.float32(0.05)
    clean = clean_session(clean_model(shape, kernel).SerializeToString(), 1)
    cases = {"exact": {}, "converters": _CONVERTERS, "noise": {**_CONVERTERS, "read.output_noise": 0.04}}
    result: dict[str, float] = {}
    for name, numbers in cases.items():
        session = emu.session(emulated_model(shape, kernel, numbers), threads=1)

        def run_clean() -> object:
            return clean.run(None, {"x": x})

        def run_emulated(session: Any = session) -> object:
            return session.run(None, {"x": x})

        run_clean()
        run_emulated()
        ratios: list[float] = []
        times: list[float] = []
        while len(ratios) < max(2, pairs) or sum(times) < _LEAST_SECONDS:
            times.append(seconds(run_clean, time.thread_time))
            ratios.append(seconds(run_emulated, time.thread_time) / times[-1])
        result[name] = statistics.median(ratios)
        result["clean_ms"] = 1e3 * statistics.median(times)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.convolutions", description=__doc__)
    parser.add_argument("--pairs", type=int, default=15, help="clean and emulated runs in turn, per case")
    pairs = parser.parse_args().pairs
    print("ratio = emulated / clean, median of pairs")
    for shape in CONVOLUTIONS:
        of = measure(shape, pairs)
        ratios = "   ".join(f"{name} {of[name]:5.2f}" for name in ("exact", "converters", "noise"))
        print(f"  {shape.name:42} {of['clean_ms']:6.2f} ms   {ratios}", flush=True)


if __name__ == "__main__":
    main()
