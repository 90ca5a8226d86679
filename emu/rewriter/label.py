"""Labels products by topology alone: which attention block they belong to and what they do there.

A Softmax anchors an attention block. The nearest product of two activations upstream is the scores product, the
nearest downstream the context product; the nearest weighted products upstream of their operands are the projections,
the nearest downstream is the output projection. Everything else is placed by which attention blocks lie up- and
downstream of it, so parallel branches (attention and FFN side by side) come out right. Names are never looked at.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from emu.rewriter.dataflow import DataFlow
from emu.rewriter.find import Product
from emu.rewriter.shapes import Probes

_ACTIVATIONS = frozenset(
    [
        "Sigmoid",
        "Tanh",
        "Erf",
        "Relu",
        "Gelu",
        "HardSwish",
        "HardSigmoid",
        "Swish",
        "Softplus",
        "Elu",
        "LeakyRelu",
        "PRelu",
        "Selu",
        "Celu",
        "Mish",
    ]
)

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


@dataclass
class Attention:
    """One attention block: its Softmax, and the products around it as far as they exist."""

    softmax: ir.Node
    scores: Product
    context: Product
    context_value: ir.Value  # the operand of the context product that does not come from the Softmax
    query: Product | None = None
    key: Product | None = None
    value: Product | None = None
    output: Product | None = None
    position_scores: list[Product] = field(default_factory=list)
    # The projection of positions, the operand of a position product that it becomes, and whether that is transposed.
    position_projections: list[tuple[Product, ir.Value, bool]] = field(default_factory=list)


@dataclass(frozen=True)
class Label:
    """Block and role of a product."""

    layer: int | None
    component: str


def find_attentions(products: list[Product], flow: DataFlow) -> list[Attention]:
    """The attention blocks of a graph, in data-flow order."""
    by_node = {product.node: product for product in products}
    attentions = []
    for softmax in flow.nodes:
        if softmax.op_type != "Softmax" or softmax.inputs[0] is None:
            continue
        scores = _upstream_products(softmax.inputs[0], by_node, flow)
        # The scores product is found without picking by index, and both of its operands come from the input.
        scores.sort(key=lambda found: (found[1], not _both_depend(found[0], flow)))
        context = _downstream_product(softmax.outputs[0], by_node, flow, stored=False)
        if not scores or context is None:
            continue
        product, reached = context
        attention = Attention(
            softmax,
            scores[0][0],
            product,
            product.activation if reached is product.matrix else product.matrix,
            position_scores=[each for each, _ in scores[1:]],
        )
        attention.query = _nearest_stored(attention.scores.activation, by_node, flow)
        attention.key = _nearest_stored(attention.scores.matrix, by_node, flow)
        attention.value = _nearest_stored(attention.context_value, by_node, flow)
        attention.position_scores += _stored_positions(attention, by_node, flow)
        after = _downstream_product(product.node.outputs[0], by_node, flow, stored=True)
        attention.output = after[0] if after else None
        for side in (each for each in attention.position_scores if not each.stored):
            for operand, transposed in ((side.activation, False), (side.matrix, True)):
                source = _nearest_stored(operand, by_node, flow)
                if source is not None and source not in (attention.query, attention.key, attention.value):
                    attention.position_projections.append((source, operand, transposed))
        attentions.append(attention)
    return attentions


def label_products(
    products: list[Product], attentions: list[Attention], flow: DataFlow, probes: Probes
) -> dict[Product, Label]:
    """Gives every product a label; what is not recognized is `other`."""
    labels: dict[Product, Label] = {}
    for layer, attention in enumerate(attentions):
        _label_attention(attention, layer, labels)
    for layer, attention in enumerate(attentions):
        if attention.output is not None:
            labels.setdefault(attention.output, Label(layer, "attention_output"))
    rest = [product for product in products if product not in labels and product.stored]
    for region in _regions(rest, attentions, flow):
        labels |= region.labels(flow, products, probes)
    return {product: labels.get(product, Label(None, "other")) for product in products}


def _label_attention(attention: Attention, layer: int, labels: dict[Product, Label]) -> None:
    labels.setdefault(attention.scores, Label(layer, "attention_scores"))
    labels.setdefault(attention.context, Label(layer, "attention_context"))
    query, key, value = attention.query, attention.key, attention.value
    roles: dict[Product, list[str]] = {}
    for product, role in ((query, "query"), (key, "key"), (value, "value")):
        if product is not None:
            roles.setdefault(product, []).append(role)
    for product, names in roles.items():
        component = "_".join(names)
        known = component in ("query", "key", "value", "query_key_value", "key_value")
        labels.setdefault(product, Label(layer, component if known else "other"))
    for side in attention.position_scores:
        labels.setdefault(side, Label(layer, "position_scores"))
    for source, _, _ in attention.position_projections:
        labels.setdefault(source, Label(layer, "position_projection"))


def _upstream_products(value: ir.Value, by_node: dict[ir.Node, Product], flow: DataFlow) -> list[tuple[Product, bool]]:
    """Products of two activations that reach `value` without another product between, nearest first."""
    found: dict[Product, bool] = {}
    for node, picked in flow.upstream(value, set(by_node)):
        product = by_node.get(node)
        if product is not None and not product.stored:
            found[product] = picked and found.get(product, True)
    return list(found.items())


def _stored_positions(attention: Attention, by_node: dict[ir.Node, Product], flow: DataFlow) -> list[Product]:
    """Products of queries or keys with stored tables of relative positions, which are added to the scores."""
    value = attention.softmax.inputs[0]
    assert value is not None, "an attention has scores"
    found = []
    for node, _ in flow.upstream(value, set(by_node)):
        product = by_node.get(node)
        if product is None or not product.stored:
            continue
        source = _nearest_stored(product.activation, by_node, flow)
        if source is not None and source in (attention.query, attention.key):
            found.append(product)
    return found


def _downstream_product(
    value: ir.Value, by_node: dict[ir.Node, Product], flow: DataFlow, stored: bool
) -> tuple[Product, ir.Value] | None:
    for node, reached in flow.downstream(value, set(by_node)):
        product = by_node.get(node)
        if product is not None and product.stored == stored:
            return product, reached
    return None


def _nearest_stored(value: ir.Value, by_node: dict[ir.Node, Product], flow: DataFlow) -> Product | None:
    for node, _ in flow.upstream(value, set(by_node)):
        product = by_node.get(node)
        if product is not None and product.stored:
            return product
    return None


def _both_depend(product: Product, flow: DataFlow) -> bool:
    return product.activation in flow.depends_on_inputs and product.matrix in flow.depends_on_inputs


@dataclass
class _Region:
    """Weighted products between two attention blocks, in data-flow order.

    `layer` is the block before them, None before the first. The last region has no block after it.
    """

    layer: int | None
    last: bool
    products: list[Product]

    def labels(self, flow: DataFlow, all_products: list[Product], probes: Probes) -> dict[Product, Label]:
        """Labels of all products of the region."""
        fed = [each for each in self.products if each.activation in flow.depends_on_inputs]
        labels = {each: Label(self.layer, "other") for each in self.products if each not in fed}
        upstream = flow.masks([each.node for each in all_products])
        bit = {each: 1 << place for place, each in enumerate(all_products)}

        def comes_after(later: Product, earlier: Product) -> bool:
            return bool(upstream[later.node] & bit[earlier])

        if self.layer is None and not self.last:
            return labels | {each: Label(None, _embedding(each, upstream[each.node], flow)) for each in fed}
        if self.layer is not None:
            labels |= self._feed_forward(fed, comes_after, flow)
        heads = [each for each in fed if each not in labels]
        for each in heads:
            component = "other"
            # A convolution after the blocks belongs to a neck or a dense head: what it is for cannot be told.
            if self.last and self.layer is not None and each.node.op_type != "Conv":
                feeds_another = any(comes_after(other, each) for other in heads)
                component = "classifier" if not feeds_another else "pooler" if _one_row(each, probes) else "other"
            labels[each] = Label(None if self.last else self.layer, component)
        return labels

    def _feed_forward(
        self, fed: list[Product], comes_after: Callable[[Product, Product], bool], flow: DataFlow
    ) -> dict[Product, Label]:
        """The first product, and the first after it that returns to the first one's input width: an FFN."""
        # Past the last block, pooler and classifier follow: there only the first product can open an FFN.
        for up in fed[:1] if self.last else fed:
            down = next((each for each in fed if comes_after(each, up) and each.columns == up.rows), None)
            if down is None:
                continue
            labels = {up: Label(self.layer, "ffn_up"), down: Label(self.layer, "ffn_down")}
            beside = [
                each for each in fed if each not in (up, down) and comes_after(down, each) and not comes_after(each, up)
            ]
            for each in beside:
                gate, other = _gate_and_up(up, each, flow)
                labels |= {gate: Label(self.layer, "ffn_gate"), other: Label(self.layer, "ffn_up")}
            return labels
        return {}


def _regions(products: list[Product], attentions: list[Attention], flow: DataFlow) -> Iterable[_Region]:
    """Sorts products by the attention blocks before and after them."""
    contexts = [attention.context.node for attention in attentions]
    above = flow.masks(contexts)
    # below[p]: the blocks that p is upstream of
    marked = flow.masks([product.node for product in products])
    below = [
        sum(1 << layer for layer, context in enumerate(contexts) if marked[context] >> place & 1)
        for place in range(len(products))
    ]
    regions: dict[tuple[int | None, bool], _Region] = {}
    for place, product in enumerate(products):
        last = not below[place]
        if last:
            before = [i for i in range(len(contexts)) if not any(above[c] >> i & 1 for c in contexts)]
        else:
            following = (below[place] & -below[place]).bit_length() - 1
            before = _direct(above[contexts[following]], above, contexts)
        own = [layer for layer in before if above[product.node] >> layer & 1]
        layer = max(own or before, default=None)
        regions.setdefault((layer, last), _Region(layer, last, [])).products.append(product)
    return regions.values()


def _direct(mask: int, above: dict[ir.Node, int], contexts: list[ir.Node]) -> list[int]:
    """Blocks in `mask` that are not before another block in it."""
    blocks = [layer for layer in range(len(contexts)) if mask >> layer & 1]
    return [layer for layer in blocks if not any(above[contexts[other]] >> layer & 1 for other in blocks)]


def _embedding(product: Product, upstream: int, flow: DataFlow) -> str:
    """What a product before the first block does: it embeds patches, or projects embeddings."""
    if upstream:
        return "other" if product.node.op_type == "Conv" else "embedding_projection"
    image = any(
        value.is_graph_input() and value.dtype in _FLOATS and value.shape is not None and len(value.shape) > 3
        for value in _sources(product.activation, flow)
    )
    return "patch_embedding" if image or product.node.op_type == "Conv" else "embedding_projection"


def _sources(value: ir.Value, flow: DataFlow) -> list[ir.Value]:
    inputs = [each for node, _ in flow.upstream(value, set()) for each in flow.data_inputs(node)]
    return [value, *inputs]


def _one_row(product: Product, probes: Probes) -> bool:
    """Whether the product sees one row per sample (a chosen token), not every token. Unknown counts as one."""
    shape = probes.base.get(product.activation)
    return shape is None or len(shape) < 3 or shape[-2] == 1


def _gate_and_up(first: Product, second: Product, flow: DataFlow) -> tuple[Product, Product]:
    """Tells the two products of a gated FFN apart: the gate passes through the activation before they meet."""
    products = {first.node, second.node}
    reached = [
        {node: node.op_type for node, _ in flow.downstream(product.node.outputs[0], products)}
        for product in (first, second)
    ]
    alone = {op for node, op in reached[1].items() if node not in reached[0]}
    return (second, first) if alone & _ACTIVATIONS else (first, second)
