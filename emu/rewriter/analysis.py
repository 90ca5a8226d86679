"""From a normalized model to its sites: products, labels, heads, and where their samples lie."""

import math
from dataclasses import dataclass, replace
from typing import Any

import onnx_ir as ir

from emu.contract.schema import DYNAMIC, QUANTIZED, STORED
from emu.contract.site import Site, Skipped
from emu.rewriter.batch import Batch
from emu.rewriter.dataflow import DataFlow, tensor_of
from emu.rewriter.find import Product, find_products
from emu.rewriter.heads import HeadFinder, Heads
from emu.rewriter.label import find_attentions, label_products
from emu.rewriter.quantized import QuantizedTensor
from emu.rewriter.shapes import Probes, probe, tokens_first
from emu.rewriter.sharing import held_by
from emu.rewriter.stored_types import stored_type

_WITH_HEADS = {"query", "key", "value", "query_key_value", "key_value"}
_WITH_HEADS |= {"attention_scores", "attention_context", "attention_output"}
_NO_HEADS = "the heads of this site could not be told from the graph: choosing a head leaves it exact"


@dataclass(frozen=True)
class Analysis:
    """The sites of a model, the product behind each (by index), and the products that stay digital."""

    sites: list[Site]
    products: list[Product]
    skipped: list[Skipped]
    probes: Probes


def analyze(model: ir.Model, name: str, batch: Batch) -> Analysis:
    """Finds and describes every site of a normalized model, in data-flow order; `batch` says where its samples lie.

    Raises:
        InputError: products of numbers other than float32.

    """
    flow = DataFlow(model.graph)
    probes = probe(model, batch)
    products, skipped = find_products(model, flow, probes, name)
    attentions = find_attentions(products, flow)
    labels = label_products(products, attentions, flow, probes)
    finder = HeadFinder(model, flow, probes, products)
    heads: dict[Product, Heads] = {}
    for attention in attentions:
        heads = finder.of(attention) | heads
    sites: list[Site] = []
    found: list[Product] = []
    for index, product in enumerate(product for product in products if not product.digital):
        place = _Samples.of(product, flow, probes)
        found.append(replace(product, samples_inside=place.inside))
        own, label = heads.get(product, Heads()), labels[product]
        codes = _codes(product)
        stack = product.stack if product.stored else 1
        per_row = None if product.rows is None or product.columns is None else product.rows * product.columns
        sites.append(
            Site(
                index=index,
                array=index,
                device="",
                node=product.node.name or "",
                op=DYNAMIC if not product.stored else QUANTIZED if codes else STORED,
                source_op=product.node.op_type,
                layer=label.layer,
                component=label.component,
                shape=(product.rows, product.columns),
                heads=own.heads,
                head_axis=own.axis,
                head_groups=own.groups,
                head_share=own.share,
                sample_axis=place.axis,
                stack=stack,
                window=product.convolution.text if product.convolution is not None else "",
                tiles=None,
                parameters=(per_row or 0) * stack if product.stored else 0,
                macs=_product_of(per_row, place.rows, place.matrices),
                macs_per_row=per_row,
                **codes,
                stored_type=_stored_type(product),
                note=_NO_HEADS if label.component in _WITH_HEADS and not own.heads else "",
            )
        )
    return Analysis(sites, found, skipped, probes)


def _product_of(*sizes: int | None) -> int | None:
    """None where a size depends on a symbolic one."""
    known = [size for size in sizes if size is not None]
    return math.prod(known) if len(known) == len(sizes) else None


def _stored_type(product: Product) -> str:
    """What the weight is stored as; float32 where the array holds a multiple of it, which has no exact short form."""
    if not product.stored or isinstance(tensor_of(product.matrix), QuantizedTensor):
        return "float32"
    exact = math.frexp(abs(held_by(product).factor))[0] == 0.5
    return stored_type(product.matrix) if exact else "float32"


def _codes(product: Product) -> dict[str, Any]:
    """What a site says about the integer codes of its weight."""
    tensor = tensor_of(product.matrix)
    if not product.stored or not isinstance(tensor, QuantizedTensor):
        return {}
    held = held_by(product)
    return {"code_bits": tensor.bits, "code_scale": tensor.matrix(held.transposed, held.stack).shares_scale}


@dataclass(frozen=True)
class _Samples:
    """Where the samples of a product's activations lie, and how many rows and matrices each has."""

    axis: int
    inside: bool
    rows: int | None
    matrices: int | None

    @staticmethod
    def of(product: Product, flow: DataFlow, probes: Probes) -> "_Samples":
        value = product.activation
        shape, grown = probes.base.get(value), probes.batch_axis(value)
        if grown is None and not product.stored:
            grown = probes.batch_axis(product.node.outputs[0])  # queries that all samples share
        fixed = probes.base is probes.more_samples
        depends = value in flow.depends_on_inputs
        rows, matrices = _sizes(product, probes, depends if fixed else grown is not None)
        if shape is not None and len(shape) == 2 and product.stored and tokens_first(value, flow, probes):
            return _Samples(1, True, rows, matrices)
        if grown is None:  # of a fixed batch, and of unknown shapes, nothing tells but whether there are data
            told = shape is not None and not fixed
            return _Samples(-1 if told or not depends else 0, False, rows, matrices)
        second = grown == 1 and shape is not None and len(shape) > 2 and product.convolution is None
        return _Samples(1 if second else 0, False, rows, matrices)


def _sizes(product: Product, probes: Probes, grows: bool) -> tuple[int | None, int | None]:
    """Rows and matrices per sample, where they do not depend on a symbolic size."""
    value = product.activation if product.convolution is None else product.node.outputs[0]
    stack = product.stack if product.stored else None
    fixed = probes.fixed(value)
    if fixed is None or any(size is None for size in fixed):
        return None, stack
    sizes = [size for size in fixed if size is not None]
    samples = probes.batch if grows else 1
    if product.convolution is not None:
        return math.prod(sizes[2:]), stack
    leading = math.prod(sizes[:-1]) if product.stored else math.prod(sizes[:-2])
    if product.stack > 1 and len(sizes) > 2 and sizes[-3] == product.stack:
        leading //= product.stack
    if leading % samples:
        return None, stack
    return (leading // samples, stack) if product.stored else (sizes[-2], leading // samples)
