"""Where attention heads lie at the products of an attention block, told by following columns through the graph."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from emu.rewriter.dataflow import DataFlow, is_standard
from emu.rewriter.find import Product
from emu.rewriter.label import Attention
from emu.rewriter.node_evaluator import NodeEvaluator
from emu.rewriter.shapes import Probes

# Operators that move elements and leave them as they are.
_LAYOUT = frozenset(
    [
        "Reshape",
        "Transpose",
        "Squeeze",
        "Unsqueeze",
        "Flatten",
        "Split",
        "Slice",
        "Gather",
        "Concat",
        "Expand",
        "Tile",
        "Identity",
    ]
)


@dataclass(frozen=True)
class Heads:
    """Heads at one product, as in `docs/operators.md`."""

    heads: int = 0
    axis: str = "none"
    groups: int = 1
    share: int = 1


class HeadFinder:
    """Finds the heads of the products of attention blocks.

    The exporter's reshapes, splits and transposes decide which column of a projection ends in which head. They are
    run on column numbers, so any layout is either confirmed or left without heads; nothing is guessed from a width.
    """

    def __init__(self, model: ir.Model, flow: DataFlow, probes: Probes, products: list[Product]) -> None:
        self._flow = flow
        self._shapes = probes.base
        self._stop = {product.node for product in products}
        self._evaluator = NodeEvaluator(model)

    def of(self, attention: Attention) -> dict[Product, Heads]:
        """Heads of every product of one attention block; products whose heads could not be told are missing."""
        queries = self._shapes.get(attention.scores.activation)
        values = self._shapes.get(attention.context_value)
        if queries is None or values is None or len(queries) < 3 or len(values) < 3:
            return {}
        matrices = int(np.prod(queries[:-2]))
        found: dict[Product, Heads] = {}
        total = self._query_heads(attention, queries)
        if not total or matrices % total:
            return {}
        found[attention.scores] = found[attention.context] = Heads(total, "matrix")
        for side in attention.position_scores:
            shape = self._shapes.get(side.node.outputs[0])
            by_head = side.stack == total if side.stored else True
            if by_head and shape is not None and int(np.prod(shape[:-2])) % total == 0:
                found[side] = Heads(total, "matrix")
        operands = [
            (attention.query, attention.scores.activation, False),
            (attention.key, attention.scores.matrix, True),
            (attention.value, attention.context_value, False),
        ]
        for product in dict.fromkeys(product for product, _, _ in operands if product is not None):
            ends = [(value, transposed) for each, value, transposed in operands if each is product]
            if heads := self._projection(product, ends, total):
                found[product] = heads
        for product, operand, transposed in attention.position_projections:
            if product not in found and (heads := self._projection(product, [(operand, transposed)], total)):
                found[product] = heads
        if attention.output is not None and self._output(attention, attention.output, total):
            found[attention.output] = Heads(total, "input")
        return found

    def _query_heads(self, attention: Attention, queries: tuple[int, ...]) -> int:
        """The number of heads: how many times one head's width fits into the query projection."""
        width, query = queries[-1], attention.query
        if query is not None and query.columns is not None and width:
            packed = [query, attention.key, attention.value].count(query)
            if packed > 1 and len(queries) > 3:  # keys beside it may have fewer heads
                return queries[-3]
            if query.columns % (packed * width) == 0:
                return query.columns // packed // width
        return queries[-3] if len(queries) > 3 else 0

    def _projection(self, product: Product, ends: list[tuple[ir.Value, bool]], total: int) -> Heads | None:
        """Heads at the columns of a projection whose result reaches `ends` (value, whether transposed)."""
        shape = self._shapes.get(product.node.outputs[0])
        columns = product.columns
        if shape is None or not columns or shape[-1] != columns:
            return None
        start = np.broadcast_to(np.arange(columns, dtype=np.int32), shape)
        traced = [self._trace(product.node.outputs[0], start, end) for end, _ in ends]
        if any(array is None or array.ndim < 3 for array in traced):
            return None
        width = traced[0].shape[-2] if ends[0][1] else traced[0].shape[-1]  # type: ignore[union-attr]
        if not width or columns % width:
            return None
        own, all_groups = columns // width // len(ends), columns // width // total
        # The last: a product that other blocks share, such as positions projected for several layers at once.
        for heads, groups in dict.fromkeys(((own, len(ends)), (own, 1), (total, all_groups))):
            fits = heads and groups and total % heads == 0 and columns % (groups * heads) == 0
            if fits and all(array is not None and _follows(array, columns // groups, heads, total) for array in traced):
                return Heads(heads, "output", groups, total // heads)
        return None

    def _output(self, attention: Attention, output: Product, total: int) -> bool:
        """Whether row k of the output projection takes element k % width of head k // width."""
        context = attention.context.node.outputs[0]
        shape = self._shapes.get(context)
        if shape is None or len(shape) < 3 or output.rows != total * shape[-1]:
            return False
        head = np.arange(int(np.prod(shape[:-2])), dtype=np.int32).reshape(shape[:-2]) % total
        start = np.broadcast_to(head[..., None, None], shape)
        rows = self._trace(context, start, output.activation)
        expected = np.arange(output.rows) // shape[-1]
        return rows is not None and rows.shape[-1:] == expected.shape and bool((rows == expected).all())

    def _trace(self, start: ir.Value, marks: np.ndarray, end: ir.Value) -> np.ndarray | None:
        """Follows marks on the elements of `start` to `end`; None where the way is not only layout and arithmetic."""
        marked: dict[ir.Value, np.ndarray] = {start: marks}
        ahead = {node for node, _ in self._flow.downstream(start, self._stop)} - self._stop
        for node in sorted(ahead, key=self._flow.position.__getitem__):
            if end in marked:
                break
            self._step(node, marked)
        return marked.get(end)

    def _step(self, node: ir.Node, marked: dict[ir.Value, np.ndarray]) -> None:
        if is_standard(node) and node.op_type in _LAYOUT:
            data = set(self._flow.data_inputs(node))
            inputs = [self._marks(each, marked) if each in data else self._known(each) for each in node.inputs]
            if any(each is not None and array is None for each, array in zip(node.inputs, inputs, strict=True)):
                return
            try:
                results = self._evaluator.run(node, inputs)
            except Exception:  # a combination that the reference implementation cannot take: the way ends here
                return
            marked.update(zip(node.outputs, results, strict=False))
            return
        # Arithmetic between a marked value and anything else keeps its places (bias, scale, rotation, norms).
        shape = self._shapes.get(node.outputs[0]) if node.outputs else None
        source = next((marked[each] for each in node.inputs if each is not None and each in marked), None)
        if source is not None and shape is not None and source.shape == shape:
            marked[node.outputs[0]] = source

    def _marks(self, value: ir.Value, marked: dict[ir.Value, np.ndarray]) -> np.ndarray | None:
        """The marks of data; data that do not come from the start (cached keys) are marked -1."""
        shape = self._shapes.get(value)
        if value in marked or shape is None:
            return marked.get(value)
        return np.broadcast_to(np.int32(-1), shape)

    def _known(self, value: ir.Value | None) -> np.ndarray | None:
        return None if value is None else self._shapes.known.get(value)


def _follows(columns: np.ndarray, group: int, heads: int, total: int) -> bool:
    """Whether matrix m of `columns` [..., rows, width] holds columns of head (m % total) // share only."""
    matrices = columns.reshape(-1, columns.shape[-2] * columns.shape[-1])
    head = (matrices % group) // (group // heads)
    wanted = np.arange(len(matrices)) % total // (total // heads)
    return bool(((head == wanted[:, None]) | (matrices < 0)).all())
