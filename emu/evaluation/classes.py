"""Which class a name in the data means: names are matched with the model's, or refused, never guessed in part."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from emu.errors import InputError, listing

NUMBERS = "numbers in the data"
"""Where classes come from whose labels are numbers already."""

_PLACEHOLDER = re.compile(r"label_?\d+")


@dataclass(frozen=True)
class ClassNames:
    """Names of classes in the order of their numbers, and who says so, as in `the model's config.json`."""

    names: tuple[str, ...]
    source: str

    @property
    def are_placeholders(self) -> bool:
        """Whether these are LABEL_0, LABEL_1, ..., as transformers fills them in where nobody named the classes."""
        return all(_PLACEHOLDER.fullmatch(name.lower()) for name in self.names)


def normalized(name: str) -> str:
    """A name without its case, spaces, `_`, `-` and `/`: `Ankle boot` and `ankle_boot` agree."""
    return re.sub(r"[\s_/-]+", "", name).casefold()


def match_names(names: Iterable[str], classes: ClassNames, where: str) -> dict[str, int]:
    """The number of the class that each name of the data means.

    A class of several names with commas between them, as those of ImageNet are, answers to each of them.

    Args:
        names: as the data have them.
        classes: what they are matched with, whole or after `normalized`.
        where: the data, for messages.

    Raises:
        InputError: a name means no class or several, or two names mean the same; both lists are shown.
    """
    named = list(dict.fromkeys(names))
    exact: dict[str, list[int]] = {}
    loose: dict[str, list[int]] = {}
    part: dict[str, list[int]] = {}
    for number, name in enumerate(classes.names):
        exact.setdefault(name, []).append(number)
        loose.setdefault(normalized(name), []).append(number)
        for synonym in name.split(",") if "," in name else ():
            part.setdefault(normalized(synonym), []).append(number)
    index: dict[str, int] = {}
    missing: list[str] = []
    for name in named:
        found = exact.get(name) or loose.get(normalized(name)) or part.get(normalized(name)) or []
        if len(found) > 1:
            raise InputError(
                f"Class '{name}' of {where} may be {listing(map(str, found))} of {classes.source}: number the classes "
                "in a file (--classes) whose names differ."
            )
        if found:
            index[name] = found[0]
        else:
            missing.append(name)
    if missing:
        raise InputError(
            f"{len(missing)} of {len(named)} classes of {where} ({_some(missing)}) are not among those of "
            f"{classes.source}, also without regard to case, spaces, '_', '-' and '/': the data have "
            f"{_some(named)}; {classes.source} has {_some(classes.names)}. Rename them, or list the names of the data "
            "in the order of the model's classes in a file (--classes)."
        )
    twice = next((name for name in named if sum(number == index[name] for number in index.values()) > 1), None)
    if twice is not None:
        same = [name for name in named if index[name] == index[twice]]
        raise InputError(
            f"{listing(same)} of {where} are one class of {classes.source}, '{classes.names[index[twice]]}': give "
            "each class one name."
        )
    return index


def _some(names: Sequence[str], most: int = 20) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
