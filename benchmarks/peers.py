"""What emulation costs elsewhere: `python -m benchmarks.peers` times one layer in whatever simulators are installed.

The layer is DeiT-small's first feed-forward product, 384 x 1536, on 197 tokens of each image: 256-row tiles, 8-bit
converters, output noise 0.04. Each program is compared with its own clean product and with clean onnxruntime, in turns
on one thread.
"""

import argparse
import importlib.util
import statistics
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import emu
from benchmarks.ratios import clean_session, seconds

DEPTH, COLUMNS, TOKENS = 384, 1536, 197
_DEVICE: dict[str, object] = {"program.model": "none"}  # rram_adc without its programming variation

Run = Callable[[], object]


def one_product(w: np.ndarray) -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", TOKENS, DEPTH])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", TOKENS, COLUMNS])
    graph = helper.make_graph([node], "one_product", [x], [y], [numpy_helper.from_array(w, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def with_onnxruntime(w: np.ndarray, x: np.ndarray) -> dict[str, Run]:
    model = one_product(w)
    clean = clean_session(model.SerializeToString(), 1)
    emulated = emu.session(emu.rewrite(model, device="rram_adc", set=_DEVICE), threads=1)
    return {
        "onnxruntime, clean": lambda: clean.run(None, {"x": x}),
        "emu": lambda: emulated.run(None, {"x": x}),
    }


def with_torch(w: np.ndarray, x: np.ndarray) -> dict[str, Run]:
    import torch

    torch.set_num_threads(1)
    weights, inputs = torch.from_numpy(w), torch.from_numpy(x)

    def tiled() -> Any:
        """The same by hand: what an engineer would write first."""
        total = 0
        for first in range(0, DEPTH, 256):
            part = inputs[..., first : first + 256]
            alpha = part.abs().amax(-1, keepdim=True)
            part = torch.round(part / alpha * 127) / 127
            tile = weights[first : first + 256]
            scale = tile.abs().max()
            y = part @ (tile / scale)
            y = y + 0.04 * torch.randn_like(y)
            total = total + torch.clamp(torch.round(y / 12 * 127), -127, 127) * (12 / 127) * alpha * scale
        return total

    def no_grad(run: Run) -> Run:
        def wrapped() -> object:
            with torch.no_grad():
                return run()

        return wrapped

    return {"PyTorch, clean": no_grad(lambda: inputs @ weights), "PyTorch, tiles by hand": no_grad(tiled)}


def with_aihwkit_lightning(w: np.ndarray, x: np.ndarray) -> dict[str, Run]:
    import torch
    from aihwkit_lightning.nn import AnalogLinear
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = 256
    config.forward.inp_res = 254
    config.forward.out_res = 254
    config.forward.out_bound = 12
    config.forward.out_noise = 0.04
    config.pre_post.input_range.enable = True
    config.pre_post.input_range.dynamic = True
    layer = AnalogLinear(DEPTH, COLUMNS, bias=False, rpu_config=config)
    layer.set_weights(torch.from_numpy(np.ascontiguousarray(w.T)))
    layer.train()  # its noise acts in training only
    inputs = torch.from_numpy(x)

    def run() -> object:
        with torch.no_grad():
            return layer(inputs)

    return {"aihwkit-lightning": run}


def with_aihwkit(w: np.ndarray, x: np.ndarray) -> dict[str, Run]:
    import torch
    from aihwkit.nn import AnalogLinear
    from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig

    runs: dict[str, Run] = {}
    for name, kind in (("aihwkit, PyTorch tile", TorchInferenceRPUConfig), ("aihwkit, C++ tile", InferenceRPUConfig)):
        config = kind()
        config.mapping.max_input_size = 256
        config.mapping.max_output_size = 256
        config.forward.inp_res = config.forward.out_res = 1 / 254
        config.forward.out_bound = 12
        config.forward.out_noise = 0.04
        layer = AnalogLinear(DEPTH, COLUMNS, bias=False, rpu_config=config)
        layer.set_weights(torch.from_numpy(np.ascontiguousarray(w.T)))
        layer.eval()
        inputs = torch.from_numpy(x)

        def run(layer: Any = layer, inputs: Any = inputs) -> object:
            with torch.no_grad():
                return layer(inputs)

        runs[name] = run
    return runs


_PEERS = {"torch": with_torch, "aihwkit_lightning": with_aihwkit_lightning, "aihwkit": with_aihwkit}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    w = (random.standard_normal((DEPTH, COLUMNS)) * 0.05).astype(np.float32)
    x = random.standard_normal((arguments.batch, TOKENS, DEPTH)).astype(np.float32)
    runs = with_onnxruntime(w, x)
    for module, make in _PEERS.items():
        if importlib.util.find_spec(module) is None:
            print(f"{module} is not installed: left out", file=sys.stderr)
            continue
        runs.update(make(w, x))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(arguments.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    clean = times["onnxruntime, clean"]
    print(f"{'':26}{'ms':>9}{'ratio to clean onnxruntime':>30}")
    for name, measured in times.items():
        ratios = [one / base for one, base in zip(measured, clean, strict=True)]
        print(f"{name:26}{1e3 * statistics.median(measured):9.1f}{statistics.median(ratios):30.2f}")


if __name__ == "__main__":
    main()
