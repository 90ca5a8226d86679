import pytest

from benchmarks.agreement.one_crossbar import NATIVE, TWIN, Crossbar
from emu.errors import InputError
from emu.runtime.library import library_path


@pytest.fixture(params=[TWIN, NATIVE], ids=lambda crossbar: crossbar.name, scope="session")
def crossbar(request: pytest.FixtureRequest) -> Crossbar:
    """One crossbar, as the NumPy twin and as the native library compute it."""
    if request.param is NATIVE:
        try:
            library_path()
        except InputError as error:
            pytest.skip(str(error))
    chosen: Crossbar = request.param
    return chosen
