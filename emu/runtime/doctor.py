"""What is installed, does it load, does it compute what it should."""

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import NamedTuple

import numpy as np

from emu.errors import InputError
from emu.version import __version__


class Check(NamedTuple):
    """One line of `emu doctor`."""

    name: str
    ok: bool
    detail: str


_PACKAGES = ("emu-onnx", "onnxruntime", "onnxruntime-extensions", "onnx", "onnx-ir", "numpy")


def doctor() -> list[Check]:
    """Check the installation, in about a second."""
    checks = [Check("python", True, f"{platform.python_version()} on {platform.platform()}")]
    for package in _PACKAGES:
        try:
            checks.append(Check(package, True, version(package)))
        except PackageNotFoundError:
            if package == "emu-onnx":
                checks.append(Check(package, True, f"{__version__}, from a checkout, not installed"))
                continue
            checks.append(Check(package, False, f"not installed; run 'pip install {package}'"))
    checks.append(_check("native library", _native_library))
    if checks[-1].ok:
        checks.append(_check("random numbers", _random_numbers))
        checks.append(_check("self-test, native operators", lambda: _self_test("native")))
    checks.append(_check("self-test, NumPy operators", lambda: _self_test("python")))
    return checks


def _check(name: str, body: Callable[[], str]) -> Check:
    try:
        return Check(name, True, body())
    except Exception as error:  # the point of a check is to report whatever goes wrong
        return Check(name, False, " ".join(str(error).split()))


def _native_library() -> str:
    from emu.runtime.library import instruction_set, library_path, library_version

    return f"{library_path()}, version {library_version()}, instruction set {instruction_set()}"


def _random_numbers() -> str:
    from emu.runtime.library import philox

    words = philox((0xA4093822, 0x299F31D0), (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), 1)[0]
    expected = [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1]
    if words.tolist() != expected:
        raise InputError(
            f"Philox4x32-10 gives {[hex(word) for word in words]}, expected {[hex(word) for word in expected]}"
        )
    return "Philox4x32-10 agrees with the published vector"


def _self_test(ops: str) -> str:
    import onnx

    from emu.rewriter import rewrite
    from emu.runtime.sessions import session

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((8, 4), np.float32)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> self_test (float[b, 8] x) => (float[b, 4] y) { y = MatMul(x, w) }'
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    emulated = rewrite(model, device="rram", only="*")
    opened = session(emulated, ops=ops)  # type: ignore[arg-type]
    x = rng.standard_normal((3, 8), np.float32)
    quiet = opened.run(None, {"x": x, "emu.strength": np.zeros(1, np.float32)})[0]
    if not np.allclose(quiet, x @ weight, atol=1e-5):
        raise InputError("a product at strength 0 differs from NumPy's")
    first, again, other = (opened.run(None, {"x": x, "emu.seed": np.int64(seed)})[0] for seed in (1, 1, 2))
    if not np.array_equal(first, again) or np.array_equal(first, other):
        raise InputError("the same seed must give the same chip, and another seed another one")
    return "strength 0 is exact, seeds name chips"
