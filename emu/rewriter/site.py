"""What is known of one site: plain data for the selection, the replacement, the manifest and `emu inspect`."""

from dataclasses import dataclass

COMPONENTS = (
    "patch_embedding",
    "embedding_projection",
    "query",
    "key",
    "value",
    "query_key_value",
    "key_value",
    "position_projection",
    "position_scores",
    "attention_scores",
    "attention_context",
    "attention_output",
    "ffn_up",
    "ffn_gate",
    "ffn_down",
    "pooler",
    "classifier",
    "other",
)
# Stored tensors that feed no product; the most telling first.
STORED_COMPONENTS = (
    "word_embedding",
    "token_type_embedding",
    "position_embedding",
    "class_token",
    "distillation_token",
    "norm",
    "bias",
    "other_stored",
)


@dataclass(frozen=True)
class Site:
    """One matrix product of a plain model that can be mapped to crossbars, or a stored tensor that feeds none.

    Attributes:
        index: place in data-flow order, from 0.
        array: the physical array that holds it: the lowest index of the sites that hold the same weight, else its own.
        node: name of the node that computes it, of the tensor where there is no product.
        op: its operator: MatMul, Gemm or Conv; the first one that reads the tensor where there is no product.
        stored: whether one operand is a weight; else both are activations.
        layer: index of the transformer block from 0, None outside blocks.
        component: one of `COMPONENTS`, or of `STORED_COMPONENTS` where there is no product.
        shape: rows K and columns N of the matrix in the array, None where they depend on a symbolic size.
        heads: number of heads, 0 where there are none or they could not be told.
        head_axis: where heads lie: `none`, `output`, `input` or `matrix`, as in `docs/operators.md`.
        head_groups: number of equal blocks of columns that each hold all heads.
        head_share: number of query heads that share one head here.
        sample_axis: axis of the activations that carries the samples, -1 if none does.
        samples_inside: whether the leading axis counts tokens first and samples second ([tokens * batch, K]).
        rows: input rows per sample and array (tokens), None where it depends on a symbolic size.
        matrices: arrays per sample: those of a weight (1, or the size of its stack), else the number of matrices that
            are written; None where it is not known.
        feeds_product: whether there is a product; else the site is a tensor that is only stored, such as an embedding.
        code_bits: bits of the integer codes that the array holds, 0 for float weights and activations.
        code_scale: what shares one scale of the codes: `tensor`, `column`, `block` (some rows of a column) or `none`.
        window: which windows of an image are the rows that are fed, as in `docs/operators.md`; empty for none.

    """

    index: int
    array: int
    node: str
    op: str
    stored: bool
    layer: int | None
    component: str
    shape: tuple[int | None, int | None]
    heads: int
    head_axis: str
    head_groups: int
    head_share: int
    sample_axis: int
    samples_inside: bool
    rows: int | None
    matrices: int | None
    feeds_product: bool = True
    code_bits: int = 0
    code_scale: str = "none"
    window: str = ""

    @property
    def parameters(self) -> int:
        """Number of weights that the array holds for good."""
        if not self.stored:
            return 0
        return (self.shape[0] or 0) * (self.shape[1] or 0) * max(1, self.matrices or 1)

    @property
    def macs_per_row(self) -> int | None:
        """Multiply-accumulates for one input row."""
        if not self.feeds_product:
            return 0
        rows, columns = self.shape
        return None if rows is None or columns is None else rows * columns

    @property
    def macs(self) -> int | None:
        """Multiply-accumulates for one sample."""
        if self.macs_per_row is None or self.rows is None or self.matrices is None:
            return None
        return self.macs_per_row * self.rows * self.matrices


@dataclass(frozen=True)
class Skipped:
    """A product that stays digital, why, and its multiply-accumulates for one sample (None where unknown)."""

    node: str
    op: str
    reason: str
    macs: int | None = None
