"""What is known of one site: plain data, from the rewriter's search through the manifest to every analysis."""

from collections.abc import Iterable
from dataclasses import dataclass

from emu.contract.schema import DYNAMIC, FAULTY_WEIGHT

# What a product can be; `other` where it could not be told.
COMPONENTS = (
    "patch_embedding",
    "embedding_projection",
    "query",
    "key",
    "value",
    "key_value",
    "query_key_value",
    "attention_scores",
    "position_projection",
    "position_scores",
    "attention_context",
    "attention_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "pooler",
    "classifier",
    "other",
)


@dataclass(frozen=True)
class Site:
    """A matrix product that is or can be mapped to crossbars, or a stored tensor that feeds none.

    Attributes:
        index: place in data-flow order, from 0.
        array: the physical array that holds it: the lowest index of the sites that hold the same weight, else its own.
        device: name of the device that it is mapped to, empty in a plain model.
        node: name of the node that computes it, of the tensor where there is no product.
        op: the operator that it is or becomes, one of `emu.contract.schema.OPERATORS`.
        source_op: its operator in the plain model; the first one that reads the tensor where there is no product.
        layer: index of the transformer block from 0, None outside blocks.
        component: what it does, one of `COMPONENTS`; or what a stored tensor is, `word_embedding`, `norm`, `bias` and
            so on.
        shape: rows K and columns N of the matrix in the array, None where they depend on a symbolic size.
        heads: number of heads, 0 where there are none or they could not be told.
        head_axis: where heads lie: `none`, `output`, `input` or `matrix`, as in `docs/operators.md`.
        head_groups: number of equal blocks of columns that each hold all heads.
        head_share: number of query heads that share one head here.
        sample_axis: axis of the activations that carries the samples, -1 if none does.
        stack: number of matrices that a stored weight holds, each an array of its own; else 1.
        window: which windows of an image are the rows that are fed, as in `docs/operators.md`; empty for none.
        tiles: number of tiles that the weight takes, or one matrix that is written; None where it is not known, and in
            a plain model.
        parameters: number of weights that the array holds for good.
        macs: multiply-accumulates for one sample, None where they depend on a symbolic size.
        macs_per_row: multiply-accumulates for one input row, likewise.
        code_bits: bits of the integer codes that the array holds, 0 for float weights and activations.
        code_scale: what shares one scale of the codes: `tensor`, `column`, `block` (some rows of a column) or `none`.
        stored_type: what float weights are in the model's file, one of `emu.contract.schema.FLOATS`.
        note: what a user should know of it, as a half-sentence; empty for nothing.
        shares_with: the other sites of its array.
        tied_to: sites that hold the transpose of its weight in arrays of their own.

    """

    index: int
    array: int
    device: str
    node: str
    op: str
    source_op: str
    layer: int | None
    component: str
    shape: tuple[int | None, int | None]
    heads: int
    head_axis: str
    head_groups: int
    head_share: int
    sample_axis: int
    stack: int
    window: str
    tiles: int | None
    parameters: int
    macs: int | None
    macs_per_row: int | None
    code_bits: int = 0
    code_scale: str = "none"
    stored_type: str = "float32"
    note: str = ""
    shares_with: tuple[int, ...] = ()
    tied_to: tuple[int, ...] = ()

    @property
    def is_product(self) -> bool:
        """Whether there is a product; else the site is a tensor that is only stored, such as an embedding."""
        return self.op != FAULTY_WEIGHT

    @property
    def is_stored(self) -> bool:
        """Whether its array holds a weight; else an activation is written into it at run time."""
        return self.op != DYNAMIC

    @property
    def query_heads(self) -> int:
        """Number of query heads that it serves."""
        return self.heads * self.head_share


@dataclass(frozen=True)
class Skipped:
    """A product that stays digital.

    Attributes:
        node: name of the node that computes it.
        op: its operator.
        reason: why, as a half-sentence.
        macs: multiply-accumulates for one sample, None where they depend on a symbolic size.
        component: as of a site, and so are the others below; empty where it cannot be one.
        layer: see above.
        heads: see above.
        head_share: see above.
        sample_axis: see above.

    """

    node: str
    op: str
    reason: str
    macs: int | None
    component: str = ""
    layer: int | None = None
    heads: int = 0
    head_share: int = 1
    sample_axis: int = -1

    @classmethod
    def of(cls, site: Site, reason: str) -> "Skipped":
        """A product that could be a site."""
        return cls(
            site.node,
            site.source_op,
            reason,
            site.macs,
            site.component,
            site.layer,
            site.heads,
            site.head_share,
            site.sample_axis,
        )

    @property
    def query_heads(self) -> int:
        """Number of query heads that it serves."""
        return self.heads * self.head_share


def one_of_each_array(sites: Iterable[Site]) -> list[Site]:
    """One site for each physical array: sites that share one hold the same parameters."""
    return list({site.array: site for site in sites}.values())
