"""A small bench and plans on it."""

from collections.abc import Callable
from typing import Any

import pytest

from emu import Bench
from emu.demo import data_path, model_path

pytest.importorskip("pandas")
pytest.importorskip("sqlalchemy")

from emu.sweep import Plan

SAMPLES = 40


@pytest.fixture(scope="session")
def bench() -> Bench:
    """The digits ViT in RRAM."""
    return Bench(model_path("digits_vit"), data_path("digits_test"), device="rram", only="*", samples=SAMPLES)


@pytest.fixture(scope="session")
def plan() -> Callable[..., Plan]:
    """Makes a plan on the same model and data."""

    def make(**settings: Any) -> Plan:
        files = {"model": model_path("digits_vit"), "data": data_path("digits_test")}
        return Plan(**{**files, "device": "rram", "only": "*", "samples": SAMPLES, **settings})

    return make
