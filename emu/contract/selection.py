"""Selects sites with the one syntax that every tool reads: `layer=0-3 component=ffn_up`, or globs of node names."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from emu.contract.site import Site
from emu.errors import InputError, suggestion

Test = Callable[[Site], bool]
Term = tuple[tuple[str, Test], ...]  # alternatives, each as written and as a test

_KEYS = ("layer", "component", "operand", "shape", "node")
_MOST_SHAPES = 12  # in an error


@dataclass(frozen=True)
class Selection:
    """What selects sites, read from a list of terms separated by spaces, all of which must hold.

    Terms are `layer=0-3` or `layer=0,2`, `component=ffn_up,ffn_down` (globs allowed: `ffn_*`), `operand=stored` (the
    arrays hold weights) or `operand=written` (activations), `shape=768x3072` (rows x columns; `*` for any size, `?` for
    one that the model leaves open), `node=<glob>`, or a bare glob of node names. Lists with `|` between them select
    what any of them does.

    Attributes:
        option: name of the option it was given with, for errors.
        lists: each list as it was written, and its terms.

    """

    option: str
    lists: tuple[tuple[str, tuple[Term, ...]], ...]

    @classmethod
    def parse(cls, text: str, option: str) -> "Selection":
        """Reads a selection.

        Raises:
            InputError: it is empty, or has a term that cannot be read.

        """
        lists = text.split("|")
        if not all(each.split() for each in lists):
            raise InputError(f"{option} is empty: write for example layer=0-3 component=ffn_up,ffn_down.")
        return cls(option, tuple((each, tuple(_term(term, option) for term in each.split())) for each in lists))

    def of(self, sites: Sequence[Site]) -> list[Site]:
        """The sites of one model that it selects, in order.

        Raises:
            InputError: a part that no site matches; it lists what exists.

        """
        for text, terms in self.lists:
            for each, test in (alternative for term in terms for alternative in term):
                if not any(test(site) for site in sites):
                    raise InputError(f"{self.option} '{each}' matches no site{_like(each, sites)}: {existing(sites)}.")
            if not any(_hold(terms, site) for site in sites):
                raise InputError(f"{self.option} '{text}' matches no site{_like(text, sites)}: {existing(sites)}.")
        return self.found_in(sites)

    def found_in(self, sites: Iterable[Site]) -> list[Site]:
        """The sites that it selects, in order; of a selection for any model, parts may match nothing in this one."""
        return [site for site in sites if any(_hold(terms, site) for _, terms in self.lists)]


def select(
    sites: Sequence[Site], only: str | None = None, exclude: str | None = None, may_be_empty: bool = False
) -> list[Site]:
    """Keeps the sites that match `only` and not `exclude`, two selections, in order.

    Raises:
        InputError: a selection that cannot be read, or a part of one that no site matches; it lists what exists.

    """
    kept = list(sites) if only is None else Selection.parse(only, "only").of(sites)
    if exclude is not None:
        dropped = Selection.parse(exclude, "exclude").of(sites)
        kept = [site for site in kept if site not in dropped]
    if sites and not kept and not may_be_empty:
        raise InputError(f"exclude '{exclude}' leaves no site: {existing(sites)}.")
    return kept


def shape_text(shape: Iterable[int | None]) -> str:
    """A shape as selections write it: 768x3072, with ? for a size that the model leaves open."""
    return "x".join("?" if size is None else str(size) for size in shape)


def existing(sites: Sequence[Site]) -> str:
    """What a selection could name."""
    layers = sorted({site.layer for site in sites if site.layer is not None})
    components = list(dict.fromkeys(site.component for site in sites))
    spans = f"layer {layers[0]}" if len(layers) == 1 else "no layers"
    if len(layers) > 1:
        spans = f"layers {layers[0]} to {layers[-1]}"
    shapes = list(dict.fromkeys(shape_text(site.shape) for site in sites))
    more = f" and {len(shapes) - _MOST_SHAPES} more" if len(shapes) > _MOST_SHAPES else ""
    return (
        f"the model has {spans}, the components {', '.join(components)}, "
        f"the shapes {', '.join(shapes[:_MOST_SHAPES])}{more}, and nodes such as {sites[0].node}"
    )


def _like(text: str, sites: Sequence[Site]) -> str:
    """A question behind a wrong component, where one of the sites' is like it."""
    components = {site.component for site in sites}
    words = [word for term in text.split() for word in term.rpartition("=")[2].split(",") if word not in components]
    return next(filter(None, (suggestion(word, components) for word in words)), "")


def _hold(terms: Iterable[Term], site: Site) -> bool:
    return all(any(test(site) for _, test in term) for term in terms)


def _term(term: str, option: str) -> Term:
    key, equals, value = term.partition("=")
    if not equals:
        return ((term, _glob(term, "node")),)
    if key not in _KEYS:
        known = ", ".join(f"{each}=" for each in _KEYS[:-1])
        raise InputError(f"{option} '{term}' cannot be read: a term starts with {known} or {_KEYS[-1]}=.")
    alternatives = value.split(",") if key != "node" else [value]
    if not all(alternatives):
        raise InputError(f"{option} '{term}' cannot be read: a value is missing after '{key}='.")
    if key == "layer":
        return tuple((f"layer={each}", _layers(each, term, option)) for each in alternatives)
    if key == "shape":
        return tuple((f"shape={each}", _shape(each, term, option)) for each in alternatives)
    if key == "operand":
        return tuple((f"operand={each}", _operand(each, term, option)) for each in alternatives)
    return tuple((f"{key}={each}", _glob(each, key)) for each in alternatives)


def _glob(pattern: str, key: str) -> Test:
    def test(site: Site) -> bool:
        text = site.node if key == "node" else site.component
        return text == pattern or fnmatchcase(text, pattern)

    return test


def _layers(text: str, term: str, option: str) -> Test:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise InputError(f"{option} '{term}' cannot be read: write layers as 3, 0-3 or 0,2.")
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    if last < first:
        raise InputError(f"{option} '{term}' cannot be read: write the range {text} as {last}-{first}.")
    return lambda site: site.layer is not None and first <= site.layer <= last


def _operand(text: str, term: str, option: str) -> Test:
    if text not in ("stored", "written"):
        raise InputError(f"{option} '{term}' cannot be read: an operand is stored or written.")
    return lambda site: site.is_stored == (text == "stored")


def _shape(text: str, term: str, option: str) -> Test:
    if re.fullmatch(r"(\d+|\*|\?)x(\d+|\*|\?)", text) is None:
        raise InputError(f"{option} '{term}' cannot be read: write a shape as rows x columns, 768x3072 or 768x*.")
    wanted = text.split("x")
    return lambda site: all(
        size in ("*", "?" if found is None else str(found)) for size, found in zip(wanted, site.shape, strict=True)
    )
