"""What a Conv node computes, as an array sees it: windows over an image, each a row of a product."""

from dataclasses import dataclass

import onnx_ir as ir

from emu.rewriter.dataflow import sizes_of, tensor_of


@dataclass(frozen=True)
class Convolution:
    """A convolution with a constant kernel.

    Attributes:
        groups: number of kernels side by side, each with its own channels, and an array of its own.
        channels: of the image that each group sees.
        outputs: of each group.
        window: for every side of the image: size, stride, dilation, padding before and behind.

    """

    groups: int
    channels: int
    outputs: int
    window: tuple[tuple[int, int, int, int, int], ...]

    @property
    def rows(self) -> int:
        """Elements of a window: rows of each group's array."""
        rows = self.channels
        for size, *_ in self.window:
            rows *= size
        return rows

    @property
    def text(self) -> str:
        """The window as the attribute of a crossbar node says it."""
        return ";".join(",".join(map(str, side)) for side in self.window)


def convolution_of(node: ir.Node, image: tuple[int | None, ...] | None) -> Convolution | str:
    """Describes a Conv node, or says why no array can hold it.

    Args:
        node: the Conv node.
        image: shape of its input, None for free sizes; None where nothing is known of it.

    """
    kernel = tensor_of(node.inputs[1])
    if kernel is None:
        return "its kernel is no constant"
    outputs, channels, *sides = sizes_of(kernel) if len(sizes_of(kernel)) > 1 else (0, 0)
    if not 1 <= len(sides) <= 3:
        return f"its kernel has {len(sides)} sides, not 1 to 3"
    attributes = node.attributes
    ones = [1] * len(sides)
    strides = list(attributes.get_ints("strides", ones))
    dilations = list(attributes.get_ints("dilations", ones))
    pads = list(attributes.get_ints("pads", [0] * 2 * len(sides)))
    padding = attributes.get_string("auto_pad", "NOTSET")
    if padding.startswith("SAME"):
        found = _same(padding, sides, strides, dilations, image)
        if found is None:
            return "its padding depends on a free size of the image (auto_pad)"
        pads = found
    elif padding == "VALID":
        pads = [0] * 2 * len(sides)
    if any(each < 0 for each in pads):
        return "its padding is negative"
    groups = attributes.get_int("group", 1)
    if groups < 1 or outputs % groups:
        return f"its {outputs} kernels do not divide into {groups} groups"
    places = range(len(sides))
    window = tuple((sides[i], strides[i], dilations[i], pads[i], pads[len(sides) + i]) for i in places)
    return Convolution(groups, channels, outputs // groups, window)


def _same(
    padding: str, sides: list[int], strides: list[int], dilations: list[int], image: tuple[int | None, ...] | None
) -> list[int] | None:
    """Padding before and behind each side that gives ceil(size / stride) outputs."""
    before, behind = [], []
    for place, (side, stride, dilation) in enumerate(zip(sides, strides, dilations, strict=True)):
        reach = (side - 1) * dilation
        size = image[2 + place] if image is not None and len(image) == len(sides) + 2 else None
        if size is None and stride != 1:
            return None
        total = reach if size is None else max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
        small = total // 2
        first = total - small if padding == "SAME_LOWER" else small
        before.append(first)
        behind.append(total - first)
    return before + behind
