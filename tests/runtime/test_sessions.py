"""Sessions know emu's operators, however often their options are told."""

import onnxruntime
import pytest

import emu
from emu.demo import model_path
from emu.errors import InputError
from emu.rewriter import EmulatedModel


@pytest.fixture(scope="module")
def rewritten() -> EmulatedModel:
    return emu.rewrite(model_path("digits_vit"), "rram")


@pytest.mark.parametrize("ops", ["native", "python"])
def test_options_may_be_registered_twice(rewritten: EmulatedModel, ops: str) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    emu.register(options, ops)
    emu.register(options, ops)
    onnxruntime.InferenceSession(rewritten.model.SerializeToString(), options)
    for _ in range(2):
        emu.session(rewritten, ops=ops, options=options)


def test_options_with_the_other_operators_are_refused() -> None:
    options = onnxruntime.SessionOptions()
    emu.register(options)
    with pytest.raises(InputError, match="have emu's native operators already: make other ones for ops 'python'"):
        emu.register(options, "python")
