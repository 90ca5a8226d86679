"""What to say when a library of an extra is not installed."""

from emu.errors import InputError

_EXTRAS = {
    "pandas": "analysis",
    "sqlalchemy": "analysis",
    "pyarrow": "analysis",
    "dask": "cluster",
    "distributed": "cluster",
}


def missing(error: ModuleNotFoundError) -> Exception:
    """The sentence for a failed import; the error itself where the library is of no extra."""
    library = (error.name or "").partition(".")[0]
    if library in _EXTRAS:
        return InputError(f'This needs {library}: pip install "emu-onnx[{_EXTRAS[library]}]".')
    return error
