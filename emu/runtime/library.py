"""The native op library: where it is, and the few functions of it that Python calls."""

import ctypes
import os
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from emu.contract.codes import Codes, stored_codes
from emu.errors import InputError

DeviceFunction: TypeAlias = Callable[
    [NDArray[np.float32], NDArray[np.float32], Mapping[str, float]], NDArray[np.float32]
]

# What a registered function becomes in C: it fills `out` and returns 0, or sets an error and returns something else.
_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_float),  # target [rows, columns]
    ctypes.POINTER(ctypes.c_float),  # normals [rows, columns]
    ctypes.POINTER(ctypes.c_char_p),  # names of parameters
    ctypes.POINTER(ctypes.c_float),  # their values
    ctypes.c_int64,  # how many
    ctypes.c_int64,  # rows
    ctypes.c_int64,  # columns
    ctypes.POINTER(ctypes.c_float),  # out [rows, columns]
)


class _Attribute(ctypes.Structure):
    """`GivenAttribute` of given_node.h: a text, or None and a number."""

    _fields_ = (("name", ctypes.c_char_p), ("text", ctypes.c_char_p), ("number", ctypes.c_int64))


class _Node(ctypes.Structure):
    """`GivenNode` of given_node.h."""

    _fields_ = (
        ("attributes", ctypes.POINTER(_Attribute)), ("attribute_count", ctypes.c_int64),
        ("device", ctypes.POINTER(ctypes.c_float)), ("entries", ctypes.c_int64),
        ("faults", ctypes.POINTER(ctypes.c_int64)), ("fault_count", ctypes.c_int64),
        ("w", ctypes.POINTER(ctypes.c_float)),
        *((name, ctypes.c_int64) for name in ("matrices", "rows", "columns")),
        ("strength", ctypes.c_float), ("seed", ctypes.c_uint32), ("read_seed", ctypes.c_uint32),
        ("codes", ctypes.POINTER(ctypes.c_int8)),
        *((name, ctypes.POINTER(ctypes.c_float)) for name in ("scale", "zero_point")), ("scales", ctypes.c_int64),
    )  # fmt: skip


# The library calls them as long as the process lives, so they must live as long.
_callbacks: list[Any] = []

LIBRARY_VARIABLE = "EMU_OPS_LIBRARY"
_FILE_NAME = "libemu_ops.dll" if sys.platform == "win32" else "libemu_ops.so"


def library_path() -> Path:
    """Path of the native op library, for `SessionOptions.register_custom_ops_library`.

    The environment variable EMU_OPS_LIBRARY, if set, wins; otherwise the library is the one installed with the package.

    Raises:
        InputError: there is no library, because emu was not installed (only its source is on the path) or because the
            environment variable names no file.
    """
    given = os.environ.get(LIBRARY_VARIABLE)
    if given:
        if not Path(given).is_file():
            raise InputError(f"{LIBRARY_VARIABLE} names '{given}', which is no file; unset it or correct the path")
        return Path(given).resolve()
    # An editable install keeps the sources and the compiled library in two folders of one package path.
    for folder in sys.modules["emu"].__path__:
        candidate = Path(folder) / "runtime" / _FILE_NAME
        if candidate.is_file():
            return candidate
    raise InputError(
        f"the native op library {_FILE_NAME} is not installed; run 'pip install .' in the checkout with a C++ compiler "
        "on the machine, or use the NumPy operators (--ops python)"
    )


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(library_path()))
    words = ctypes.POINTER(ctypes.c_uint32)
    floats = ctypes.POINTER(ctypes.c_float)
    for name in ("emu_version", "emu_last_error", "emu_instruction_set"):
        getattr(library, name).restype = ctypes.c_char_p
    library.emu_use_instruction_set.argtypes = [ctypes.c_char_p]
    library.emu_philox.argtypes = [words, words, ctypes.c_int64, words]
    library.emu_philox.restype = None
    library.emu_normals.argtypes = [words, words, ctypes.c_int64, ctypes.c_int64, floats]
    library.emu_normals.restype = None
    library.emu_keep_programmed.argtypes = [ctypes.c_int]
    library.emu_keep_programmed.restype = None
    library.emu_program.argtypes = [ctypes.POINTER(_Node), floats]
    library.emu_program_for_reading.argtypes = [
        ctypes.POINTER(_Node), ctypes.POINTER(ctypes.c_int64), floats, floats, floats, floats,
    ]  # fmt: skip
    word, size = ctypes.c_uint32, ctypes.c_int64
    library.emu_run_time_normals.argtypes = [words, word, word, words, words, words, size, size, size, size, floats]
    library.emu_run_time_normals.restype = None
    library.emu_register_function.argtypes = [ctypes.c_char_p, _CALLBACK]
    library.emu_set_function_error.argtypes = [ctypes.c_char_p]
    library.emu_set_function_error.restype = None
    return library


def _words(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * len(values))(*values)


def _pointer(array: NDArray[np.float32]) -> "ctypes._Pointer[ctypes.c_float]":
    return array.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def library_version() -> str:
    """Version of the native library."""
    return str(_library().emu_version().decode())


def instruction_set() -> str:
    """Instruction set whose loops are in use: `avx512_vnni`, `avx512`, `avx2` or `baseline`."""
    return str(_library().emu_instruction_set().decode())


def use_instruction_set(name: str) -> None:
    """Force the loops of one instruction set for this process; `best` undoes it. For tests and measurements.

    Raises:
        InputError: the name is unknown or this processor cannot run it.
    """
    if _library().emu_use_instruction_set(name.encode()) != 0:
        expected = "best, baseline, avx2, avx512 or avx512_vnni"
        raise InputError(f"instruction set '{name}' cannot be used here; expected {expected}")


def keep_programmed(copies: int) -> None:
    """Keep this many programmed copies of every weight (the newest chips), instead of one; memory against time."""
    _library().emu_keep_programmed(copies)


def philox(key: tuple[int, int], counter: tuple[int, int, int, int], blocks: int) -> NDArray[np.uint32]:
    """Words of consecutive Philox4x32-10 blocks, uint32 `[blocks, 4]`; the first counter word counts up."""
    out = np.empty((blocks, 4), np.uint32)
    pointer = out.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32))
    _library().emu_philox(_words(key), _words(counter), blocks, pointer)
    return out


def normals(
    key: tuple[int, int], counter: tuple[int, int, int, int], count: int, first_column: int = 0
) -> NDArray[np.float32]:
    """Standard normals of columns `[first_column, first_column + count)` of the row that begins at `counter`."""
    out = np.empty(count, np.float32)
    _library().emu_normals(_words(key), _words(counter), first_column, count, _pointer(out))
    return out


def run_time_normals(
    seeds: tuple[int, int],
    site: int,
    stream: int,
    samples: NDArray[Any],
    matrices: NDArray[Any],
    positions: NDArray[Any],
    part: slice,
    *,
    uniform: bool = False,
) -> NDArray[np.float32]:
    """Standard normals of run-time noise (or uniforms in (0, 1]), float32 `[rows, columns of part]`.

    Args:
        seeds: `seed` and `read_seed`.
        site: index of the site.
        stream: counter word c3: stream, row tile and reading.
        samples: integers `[rows]`: index of the sample of each row.
        matrices: likewise, of its matrix within the sample.
        positions: likewise, its position; negative ones are those of padding.
        part: columns of the array.
        uniform: whether the stream is one of uniforms.
    """
    words = [np.ascontiguousarray(each).astype(np.uint32) for each in (samples, matrices, positions)]
    out = np.empty((len(words[0]), part.stop - part.start), np.float32)
    places = [each.ctypes.data_as(ctypes.POINTER(ctypes.c_uint32)) for each in words]
    size = len(out), part.start, out.shape[1]
    _library().emu_run_time_normals(_words(seeds), site, stream, *places, *size, int(uniform), _pointer(out))
    return out


def programmed_weight(
    weight: NDArray[np.float32],
    attributes: dict[str, int | str],
    device: NDArray[np.float32],
    strength: float = 1.0,
    seed: int = 0,
    read_seed: int = 0,
    faults: NDArray[np.int64] | None = None,
    codes: tuple[Codes, NDArray[np.float32], NDArray[np.float32]] | None = None,
) -> NDArray[np.float32]:
    """What the arrays of one chip hold for a weight, in weight units.

    Args:
        weight: float32 `[K, N]`, or `[G, K, N]`, a stack of matrices.
        attributes: the node's attributes, as in docs/operators.md.
        device: float32 `[P]`, the numbers that `attributes["entries"]` names.
        strength: factor on every random amplitude.
        seed: the chip, 0 to 2^32 - 1.
        read_seed: the repetition, for cycle-to-cycle variation.
        faults: int64 `[F, 2]`, a list of faults, as in docs/operators.md.
        codes: of a quantized weight, which `weight` is in float: codes of its shape, scale and zero point.

    Returns:
        float32, the shape of `weight`.

    Raises:
        InputError: an attribute or number is unknown or out of range, or the weight is not finite or of another rank.
    """
    out = np.empty(weight.shape, np.float32)
    node = _node(weight, attributes, device, strength, seed, read_seed, faults)
    if codes is not None:
        stored = stored_codes(codes[0], int(attributes["code_bits"]))
        scale, zero_point = (np.ascontiguousarray(each, np.float32) for each in codes[1:])
        node.codes, node.scales = stored.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)), scale.size
        node.scale, node.zero_point = _pointer(scale), _pointer(zero_point)
        node.kept += stored, scale, zero_point
    _refuse(_library().emu_program(node, _pointer(out)))
    return out


def programmed_array(
    weight: NDArray[np.float32],
    attributes: dict[str, int | str],
    device: NDArray[np.float32],
    slices: int,
    row_tiles: int,
    unit_column: bool,
    strength: float = 1.0,
    seed: int = 0,
    read_seed: int = 0,
    faults: NDArray[np.int64] | None = None,
    *,
    squares: bool = False,
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32] | None]:
    """What the arrays of one chip hold for a weight, as a reading finds it; see `programmed_weight`.

    Args:
        weight: float32 `[K, N]`, or `[G, K, N]`, a stack of matrices.
        attributes: the node's attributes.
        device: float32 `[P]`, the numbers that `attributes["entries"]` names.
        slices: number of weight slices that the attributes ask for.
        row_tiles: number of row tiles that the attributes cut K into.
        unit_column: whether the offset is corrected by reading cells.
        strength: factor on every random amplitude.
        seed: the chip.
        read_seed: the repetition.
        faults: int64 `[F, 2]`, a list of faults.
        squares: whether read noise is in proportion to the conductance of each device.

    Returns:
        v in units of g_max (plain numbers: of the scale), float32 `[slices, K, N]`; the scale of every column in every
        row tile, with the factor of compensation, float32 `[row tiles, N]`; v of the unit column, float32
        `[slices, K]`, or None; and the sum of g^2 over the devices of each weight, like v, or None. For a stack
        `[slices, G, K, N]`, `[G, row tiles, N]`, `[slices, G, K]` and `[slices, G, K, N]`.

    Raises:
        InputError: as `programmed_weight`, or the numbers do not fit the attributes.
    """
    v = np.empty((slices, *weight.shape), np.float32)
    scales = np.empty((*weight.shape[:-2], row_tiles, weight.shape[-1]), np.float32)
    column = np.empty((slices if unit_column else 0, *weight.shape[:-1]), np.float32)
    of_devices = np.empty((slices if squares else 0, *weight.shape), np.float32)
    counts = (ctypes.c_int64 * 4)(slices, row_tiles, len(column), len(of_devices))
    node = _node(weight, attributes, device, strength, seed, read_seed, faults)
    out = (_pointer(each) for each in (v, scales, column, of_devices))
    _refuse(_library().emu_program_for_reading(node, counts, *out))
    return v, scales, column if unit_column else None, of_devices if squares else None


def register_function(name: str, function: DeviceFunction) -> None:
    """Give the native operators the device function of that name; a second one of a name replaces the first.

    Args:
        name: the name that nodes carry in the attribute `program_function`.
        function: `function(target, normals, parameters)`, as docs/operators.md has it: float32 `[K, N]` twice and the
            numbers by name, to float32 `[K, N]`.

    Raises:
        InputError: the native library is not installed, or refuses the name.
    """

    def callback(
        target: Any, normals: Any, names: Any, values: Any, count: int, rows: int, columns: int, out: Any
    ) -> int:
        try:
            shape = rows, columns
            given = [_array(pointer, shape).copy() for pointer in (target, normals)]
            parameters = {names[index].decode(): values[index] for index in range(count)}
            result = np.asarray(function(given[0], given[1], parameters))
            if result.shape != shape or result.dtype != np.float32:
                raise InputError(f"it gave {result.dtype} {list(result.shape)}, expected float32 {list(shape)}")
            _array(out, shape)[...] = result
        except BaseException as error:  # also KeyboardInterrupt: nothing may leave a function that C called
            said = " ".join(str(error).split()) or type(error).__name__
            _library().emu_set_function_error(said.encode())
            return 1
        return 0

    for_library = _CALLBACK(callback)
    _refuse(_library().emu_register_function(name.encode(), for_library))
    _callbacks.append(for_library)


def _array(pointer: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    """An array over memory that C owns."""
    if 0 in shape:
        return np.empty(shape, np.float32)
    return np.ctypeslib.as_array(pointer, shape)


def _node(
    weight: NDArray[np.float32],
    attributes: Mapping[str, int | str],
    device: NDArray[np.float32],
    strength: float,
    seed: int,
    read_seed: int,
    faults: NDArray[np.int64] | None,
) -> _Node:
    """A node as C has it, which keeps its arrays."""
    if weight.ndim not in (2, 3):
        raise InputError(f"the weight has shape {list(weight.shape)}; expected [K, N] or [G, K, N]")
    weight = np.ascontiguousarray(weight, np.float32)
    device = np.ascontiguousarray(device, np.float32)
    faults = np.ascontiguousarray(np.zeros((0, 2)) if faults is None else faults, np.int64)
    rows = [
        (name.encode(), None, value) if isinstance(value, int) else (name.encode(), value.encode(), 0)
        for name, value in attributes.items()
    ]
    given = (_Attribute * len(rows))(*(_Attribute(*row) for row in rows))
    integers = faults.ctypes.data_as(ctypes.POINTER(ctypes.c_int64))
    matrices = len(weight) if weight.ndim == 3 else 1
    node = _Node(
        given, len(given), _pointer(device), device.size, integers, len(faults),
        _pointer(weight), matrices, *weight.shape[-2:], strength, seed, read_seed,
    )  # fmt: skip
    node.kept = given, device, faults, weight
    return node


def _refuse(failed: int) -> None:
    """Raise what the library said of a call that failed."""
    if failed:
        raise InputError(_library().emu_last_error().decode().removeprefix("emu: "))
