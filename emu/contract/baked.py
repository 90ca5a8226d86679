"""What a baked model says about itself: which chip's stored values it holds, as JSON in its metadata."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from emu.errors import InputError

BAKED_KEY = "emu.baked"  # in a model's metadata


@dataclass(frozen=True)
class BakedChip:
    """The chip whose stored values a plain model holds.

    Attributes:
        devices: profiles of the devices by name, as plain data.
        settings: the devices' numbers, as `--set` names them.
        seed: which chip.
        read_seed: which repetition, for what is drawn anew with every one and frozen here.
        fingerprint: SHA-256 of all stored values in the order of the sites, in hexadecimal: equal for equal chips.
        sites: number of sites whose stored values it holds.
        source: name of the file that it was baked from, empty for a model in memory.
        emu_version: the version that wrote it.
        dropped: what the devices do at run time and the file does not: `read`, `write`, `converters`, `wires`.

    """

    devices: Mapping[str, Any]
    settings: Mapping[str, float]
    seed: int
    read_seed: int
    fingerprint: str
    sites: int
    source: str
    emu_version: str
    dropped: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The text in the metadata of a model."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str, name: str) -> "BakedChip":
        """The chip in the metadata of a model; `name` is how to call the model in an error.

        Raises:
            InputError: it is damaged.

        """
        try:
            found = json.loads(text)
            known = {each.name for each in fields(cls)}
            chip = cls(**{key: value for key, value in found.items() if key in known})
        except (AttributeError, TypeError, ValueError, RecursionError) as error:
            raise InputError(f"{name} has a damaged record of its chip ({error}): bake it again.") from None
        if not isinstance(chip.devices, dict) or not isinstance(chip.seed, int) or not isinstance(chip.dropped, list):
            raise InputError(f"{name} has a damaged record of its chip: bake it again.")
        return cls(**{**vars(chip), "dropped": tuple(chip.dropped)})

    @property
    def in_words(self) -> str:
        """Which chip it is."""
        left = f", without {' and '.join(self.dropped)}" if self.dropped else ""
        return f"chip {self.seed} of {', '.join(self.devices)}{left}"
