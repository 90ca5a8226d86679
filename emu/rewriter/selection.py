"""Selects sites with the one syntax that every tool reads: `layer=0-3 component=ffn_up`, or globs of node names."""

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

from emu.errors import InputError

_MOST_SHAPES = 12  # in an error


class Selectable(Protocol):
    """What a selection looks at."""

    @property
    def node(self) -> str: ...  # noqa: D102

    @property
    def layer(self) -> int | None: ...  # noqa: D102

    @property
    def component(self) -> str: ...  # noqa: D102

    @property
    def shape(self) -> tuple[int | None, int | None]: ...  # noqa: D102


S = TypeVar("S", bound=Selectable)


def select(
    sites: Sequence[S], only: str | None = None, exclude: str | None = None, may_be_empty: bool = False
) -> list[S]:
    """Keeps the sites that match `only` and not `exclude`, in order.

    A selection is a list of terms separated by spaces, all of which must hold: `layer=0-3` or `layer=0,2`,
    `component=ffn_up,ffn_down` (globs allowed: `ffn_*`), `shape=768x3072` (rows x columns; `*` for any size, `?` for
    one that the model leaves open), `node=<glob>`, or a bare glob of node names. Selections with `|` between them match
    what any of them matches.

    Raises:
        InputError: a term that cannot be read, or one that no site matches; it lists what exists.

    """
    kept = list(sites)
    if only is not None:
        kept = matching(sites, only, "only")
    if exclude is not None:
        dropped = {site.node for site in matching(sites, exclude, "exclude")}
        kept = [site for site in kept if site.node not in dropped]
    if sites and not kept and not may_be_empty:
        raise InputError(f"exclude '{exclude}' leaves no site: {_existing(sites)}.")
    return kept


def matching(sites: Sequence[S], selection: str, option: str) -> list[S]:
    """The sites that match a selection.

    Args:
        sites: sites of one model.
        selection: terms as in `select`.
        option: name of the option it was given with, for errors.

    Raises:
        InputError: as in `select`.

    """
    if "|" in selection:
        found = {site.node for part in selection.split("|") for site in matching(sites, part, option)}
        return [site for site in sites if site.node in found]
    terms = selection.split()
    if not terms:
        raise InputError(f"{option} is empty: write for example layer=0-3 component=ffn_up,ffn_down.")
    kept = list(sites)
    for term in terms:
        tests = _tests(term, option)
        for text, test in tests:
            if not any(test(site) for site in sites):
                raise InputError(f"{option} '{text}' matches no site: {_existing(sites)}.")
        kept = [site for site in kept if any(test(site) for _, test in tests)]
    if not kept:
        raise InputError(f"{option} '{selection}' matches no site: {_existing(sites)}.")
    return kept


def _tests(term: str, option: str) -> list[tuple[str, Callable[[Selectable], bool]]]:
    """The alternatives of one term, each as written and as a test."""
    key, equals, value = term.partition("=")
    if not equals:
        return [(term, _glob(term, "node"))]
    if key not in ("layer", "component", "shape", "node"):
        raise InputError(f"{option} '{term}' cannot be read: a term starts with layer=, component=, shape= or node=.")
    alternatives = value.split(",") if key != "node" else [value]
    if not all(alternatives):
        raise InputError(f"{option} '{term}' cannot be read: a value is missing after '{key}='.")
    if key == "layer":
        return [(f"layer={each}", _layers(each, term, option)) for each in alternatives]
    if key == "shape":
        return [(f"shape={each}", _shape(each, term, option)) for each in alternatives]
    return [(f"{key}={each}", _glob(each, key)) for each in alternatives]


def _glob(pattern: str, key: str) -> Callable[[Selectable], bool]:
    def test(site: Selectable) -> bool:
        text = site.node if key == "node" else site.component
        return text == pattern or fnmatch.fnmatchcase(text, pattern)

    return test


def _layers(text: str, term: str, option: str) -> Callable[[Selectable], bool]:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    if found is None:
        raise InputError(f"{option} '{term}' cannot be read: write layers as 3, 0-3 or 0,2.")
    first = int(found[1])
    last = int(found[2]) if found[2] else first
    if last < first:
        raise InputError(f"{option} '{term}' cannot be read: write the range {text} as {last}-{first}.")
    return lambda site: site.layer is not None and first <= site.layer <= last


def _shape(text: str, term: str, option: str) -> Callable[[Selectable], bool]:
    if re.fullmatch(r"(\d+|\*|\?)x(\d+|\*|\?)", text) is None:
        raise InputError(f"{option} '{term}' cannot be read: write a shape as rows x columns, 768x3072 or 768x*.")
    wanted = text.split("x")
    return lambda site: all(
        size in ("*", "?" if found is None else str(found)) for size, found in zip(wanted, site.shape, strict=True)
    )


def shape_text(shape: Iterable[int | None]) -> str:
    """A shape as selections write it: 768x3072, with ? for a size that the model leaves open."""
    return "x".join("?" if size is None else str(size) for size in shape)


def _existing(sites: Iterable[Selectable]) -> str:
    """What a selection could name."""
    sites = list(sites)
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
