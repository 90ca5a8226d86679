"""The bit flips and stuck cells of one chip as a file, which `rewrite(..., faults=...)` gives to every chip."""

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emu.contract.selection import shape_text
from emu.contract.site import Site
from emu.device import Profile
from emu.errors import InputError
from emu.rewriter.replace import node_attributes

FORMAT = 1
_FACTS = "facts"
FIRST_STUCK = 64  # what a fault number says, modulo 256: below, a bit of a code; from here on, a stuck cell


@dataclass(frozen=True)
class ArrayFaults:
    """The faults of one physical array.

    Attributes:
        node: the first site that the array serves.
        component: what that site does.
        shape: rows and columns of the array.
        storage: what says how values lie in it: the attributes of `docs/operators.md` that faults depend on.
        numbers: int64 `[F]`: one number per fault, as `docs/operators.md` has them.

    """

    node: str
    component: str
    shape: tuple[int, int]
    storage: Mapping[str, int | str]
    numbers: NDArray[np.int64]

    @property
    def bit_flips(self) -> int:
        """Number of bits that flip."""
        return int((self.numbers % 256 < FIRST_STUCK).sum())

    @property
    def stuck_cells(self) -> int:
        """Number of cells that are stuck."""
        return len(self.numbers) - self.bit_flips


@dataclass(frozen=True)
class Faults:
    """The faults of one chip, array by array.

    Attributes:
        origin: which chip of which device: `seed`, `read_seed` and `settings`, for the record.
        arrays: all arrays that can have faults, in the order of their sites.
        where: how to name it in an error.

    """

    origin: Mapping[str, Any]
    arrays: tuple[ArrayFaults, ...]
    where: str = "The list of faults"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file, atomically.

        Raises:
            InputError: the folder does not exist, or cannot be written to.

        """
        target = Path(path)
        if not target.parent.is_dir():
            raise InputError(f"There is no folder {target.parent} to write {target.name} to: create it first.")
        facts = {
            "format": FORMAT,
            "origin": dict(self.origin),
            "arrays": [
                {key: value for key, value in asdict(array).items() if key != "numbers"} for array in self.arrays
            ],
        }
        numbers = {str(index): array.numbers for index, array in enumerate(self.arrays)}
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(file, **{_FACTS: np.array(json.dumps(facts))}, **numbers)  # type: ignore[arg-type]
            os.replace(temporary, target)
        except OSError as error:
            raise InputError(f"{target} cannot be written: {error.strerror or error}.") from None
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Faults":
        """Reads what `save` wrote.

        Raises:
            InputError: there is no such file, or it holds something else.

        """
        where = os.fspath(path)
        if not Path(path).is_file():
            raise InputError(f"There is no file of faults {where}: write one with 'emu faults'.")
        no_faults = InputError(f"{where} is no file of faults: write one with 'emu faults'.")
        try:
            with np.load(path, allow_pickle=False) as file:
                contents = {name: file[name] for name in file.files}
            facts = json.loads(str(contents[_FACTS]))
            found = facts["format"]
        except (ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, zipfile.BadZipFile):
            raise no_faults from None
        if found != FORMAT:
            raise InputError(
                f"{where} holds faults of format {found}, this emu reads format {FORMAT}: "
                "write it again with 'emu faults'."
            )
        try:
            arrays = tuple(
                ArrayFaults(
                    each["node"],
                    each["component"],
                    (int(each["shape"][0]), int(each["shape"][1])),
                    dict(each["storage"]),
                    contents[str(index)].astype(np.int64).reshape(-1),
                )
                for index, each in enumerate(facts["arrays"])
            )
            return cls(dict(facts["origin"]), arrays, where)
        except (ValueError, KeyError, TypeError, IndexError):
            raise no_faults from None

    def by_array(self, sites: Sequence[Site], profiles: Mapping[str, Profile]) -> NDArray[np.int64]:
        """All faults as one list, int64 `[F, 2]`: the array of a model and the number of the fault.

        Raises:
            InputError: an array is missing here or there, has another shape, or stores its values in another way.

        """
        lists = {array.node: array for array in self.arrays}
        found: dict[int, NDArray[np.int64]] = {}
        wanted: set[str] = set()
        for group in fault_groups(sites, profiles):
            first = group[0]
            wanted.add(first.node)
            array = lists.get(first.node)
            if array is None:
                raise InputError(
                    f"{self.where} says nothing of node '{first.node}', which the device gives faults: "
                    "rewrite the same sites for the same devices as for 'emu faults'."
                )
            if array.shape != first.shape:
                raise InputError(
                    f"{self.where}: node '{first.node}' was {shape_text(array.shape)}, here it is "
                    f"{shape_text(first.shape)}: give the faults of this model."
                )
            storage = fault_storage(node_attributes(first, profiles[first.device], len(sites)), first.code_bits)
            for name in dict.fromkeys([*array.storage, *storage]):
                before, now = array.storage.get(name, "none"), storage.get(name, "none")
                if before != now:
                    raise InputError(
                        f"{self.where}: node '{first.node}' was stored with {name} = {before}, here it is {now}: "
                        "rewrite for the device that the faults were drawn for."
                    )
            if first.array in found:
                raise InputError(
                    f"{self.where}: node '{first.node}' shares its array with a node that stores it in another way, "
                    "and each has faults of its own: rewrite with share 'never'."
                )
            found[first.array] = array.numbers
        unknown = next((node for node in lists if node not in wanted), None)
        if unknown is not None:
            raise InputError(
                f"{self.where} has faults of node '{unknown}', which is no site with faults here: "
                "rewrite the same sites for the same devices as for 'emu faults'."
            )
        rows = [np.stack([np.full_like(numbers, array), numbers], axis=1) for array, numbers in found.items()]
        return np.concatenate(rows) if rows else np.zeros((0, 2), np.int64)


def fault_groups(sites: Sequence[Site], profiles: Mapping[str, Profile]) -> list[list[Site]]:
    """The sites that random faults hit, those that share what is hit together."""
    groups: dict[tuple[int, int], list[Site]] = {}
    for site in sites:
        if site.is_stored and profiles[site.device].structure()["fault_source"] == "random":
            groups.setdefault((site.array, site.code_bits), []).append(site)
    return list(groups.values())


def fault_storage(attributes: Mapping[str, int | str], code_bits: int) -> dict[str, int | str]:
    """How values are stored at a site, as far as its random faults depend on it.

    Args:
        attributes: of its node.
        code_bits: bits of the model's own codes, 0 for float weights.

    """
    names = ["fault_storage"]
    if attributes["fault_storage"] == "int":
        names += ["fault_bits", *(() if code_bits else ("fault_range", "fault_scale"))]
    if "faults.stuck_low" in str(attributes["entries"]).split(","):
        names += ["encoding", "weight_bits", "slice_bits"]
    return {"weights": f"int{code_bits}" if code_bits else "float32"} | {name: attributes[name] for name in names}
