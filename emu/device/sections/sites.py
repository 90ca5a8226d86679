"""[sites]: which products of a model are on the device, as its study has it; the others stay digital."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, TypeAlias

from pydantic import AfterValidator

from emu.contract.selection import Selection
from emu.contract.site import COMPONENTS, Site
from emu.device.fields import Choice
from emu.device.overrides import listing
from emu.device.sections.section import Section
from emu.errors import InputError, suggestion

STUDY = "the device's own; --only, --exclude and --map say otherwise"


def _check(text: str | None) -> str | None:
    """Refuses what no selection is, and components that no model has."""
    if text is None:
        return None
    try:
        selection = Selection.parse(text, "")
    except InputError as error:
        raise ValueError(str(error).removesuffix(".")) from None
    for part in (part for _, terms in selection.lists for term in terms for part, _ in term):
        key, _, word = part.partition("=")
        if key == "component" and not any(fnmatchcase(each, word) for each in COMPONENTS):
            raise ValueError(f" names '{word}'{suggestion(word, COMPONENTS)}; components are {listing(COMPONENTS)}")
    return text


Selected: TypeAlias = Annotated[str | None, AfterValidator(_check)]
SELECTION = "sites as --only has them, such as component=query,ffn_* or operand=stored"


class Sites(Section):
    """A device that all products of a model are on, or those of a selection that is made for any model."""

    only: Annotated[Selected, Choice("products on the device; off: all", STUDY, SELECTION)] = None
    exclude: Annotated[Selected, Choice("products of these that stay digital; off: none", STUDY, SELECTION)] = None

    def of(self, products: Sequence[Site]) -> list[Site]:
        """Those of a model's products that are on the device, in order."""
        chosen = list(products) if self.only is None else Selection.parse(self.only, "sites.only").found_in(products)
        if self.exclude is None:
            return chosen
        left = Selection.parse(self.exclude, "sites.exclude").found_in(products)
        return [site for site in chosen if site not in left]
