"""Libraries that only some users need: imported where they are used, asked for in one sentence where they miss."""

from importlib import import_module
from typing import Any

from emu.errors import InputError

_EXTRAS = {
    "pandas": "analysis",
    "sqlalchemy": "analysis",
    "pyarrow": "analysis",
    "dask": "cluster",
    "distributed": "cluster",
}


def library(module: str, extra: str = "data") -> Any:
    """Imports a module of an optional library.

    Args:
        module: its name, such as `scipy.stats`.
        extra: the extra of emu that installs it.

    Raises:
        InputError: it is not installed, or it cannot be imported.
    """
    name = module.partition(".")[0]
    name = {"PIL": "pillow"}.get(name, name)
    try:
        return import_module(module)
    except ModuleNotFoundError:
        raise InputError(f'This needs {name}: pip install "emu-onnx[{extra}]".') from None
    except Exception as error:  # libraries that do not fit each other fail in many ways
        reason = " ".join(str(error).split())
        raise InputError(
            f'This needs {name}, which is installed but fails to load ({reason}): pip install "emu-onnx[{extra}]".'
        ) from None


def missing(error: ModuleNotFoundError) -> Exception:
    """The sentence for a failed import; the error itself where the library is of no extra."""
    library = (error.name or "").partition(".")[0]
    if library in _EXTRAS:
        return InputError(f'This needs {library}: pip install "emu-onnx[{_EXTRAS[library]}]".')
    return error
