"""Runs a rewritten model site by site, so that what leaves one can be corrected before anything reads it.

A segment is what is computed between one site and the next. Values that later segments need wait on disk.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from emu.runtime import session as open_session

Feeds = Mapping[str, NDArray[Any]]

_SMALL_BYTES = 1 << 16  # values up to this size stay in memory


class Plan:
    """Which nodes are computed between one site and the next, and which values later ones need."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        self.proto = proto
        self.nodes = list(proto.graph.node)
        self.initializers = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._makers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self._reads = [[name for name in _reads(node) if name] for node in self.nodes]
        self.fed = {value.name for value in proto.graph.input if value.name not in self.initializers}
        self.controls = {value.name for value in proto.graph.input if value.name in self.initializers}

    def segments(self, stops: Sequence[Sequence[str]]) -> Iterator[tuple[list[int], list[str]]]:
        """For each stop, a list of values: the nodes that are computed for it, and all values to keep from them."""
        done: set[int] = set()
        parts = []
        for stop in stops:
            todo, found = [self._makers[name] for name in stop if name in self._makers], set[int]()
            while todo:
                index = todo.pop()
                if index not in found and index not in done:
                    found.add(index)
                    todo += [self._makers[name] for name in self._reads[index] if name in self._makers]
            done |= found
            parts.append(sorted(found))
        needed: list[set[str]] = [set() for _ in parts]
        later: set[str] = set()
        for place in reversed(range(len(parts))):
            needed[place] = later | set(stops[place])
            later = later | set(stops[place]) | {name for index in parts[place] for name in self._reads[index]}
        for nodes, names in zip(parts, needed, strict=True):
            made = [name for index in nodes for name in self.nodes[index].output if name in names]
            yield nodes, made

    def model(
        self, nodes: Sequence[int], outputs: Sequence[str], kinds: Mapping[str, np.dtype[Any]]
    ) -> onnx.ModelProto:
        """A model of some nodes; `kinds` are the types of the values that it may be fed."""
        made = {name for index in nodes for name in self.nodes[index].output}
        read = dict.fromkeys(name for index in nodes for name in self._reads[index] if name not in made)
        model = onnx.ModelProto(ir_version=self.proto.ir_version)
        model.opset_import.extend(self.proto.opset_import)
        model.graph.name = "segment"
        model.graph.node.extend(self.nodes[index] for index in nodes)
        for name in read:
            if name in self.initializers:
                model.graph.initializer.append(self.initializers[name])
            if name not in self.initializers or name in self.controls:
                kind = kinds.get(name)
                element = (
                    self.initializers[name].data_type if kind is None else onnx.helper.np_dtype_to_tensor_dtype(kind)
                )
                model.graph.input.append(onnx.helper.make_tensor_value_info(name, element, None))
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        return model


def _reads(node: onnx.NodeProto) -> list[str]:
    """What a node reads, values that its subgraphs capture among them."""
    names = list(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            made = {name for inner in graph.node for name in inner.output} | {each.name for each in graph.initializer}
            names += [name for inner in graph.node for name in _reads(inner) if name not in made]
    return names


class Lane:
    """The values of one run of all batches: of the clean model, or of a chip under one method.

    Args:
        controls: control inputs that are not the model's defaults.
        batches: what the model is fed, batch by batch, with the index of the first sample.
        folder: where large values wait.
    """

    def __init__(self, controls: Feeds, batches: Sequence[tuple[int, Feeds]], folder: Path) -> None:
        self.controls = dict(controls)
        self.firsts = [start for start, _ in batches]
        self.sizes = [len(next(iter(feeds.values()))) for _, feeds in batches]
        self.folder = folder
        self._kept: list[dict[str, NDArray[Any] | Path]] = [dict(feeds) for _, feeds in batches]
        self._files = 0

    @property
    def batches(self) -> int:
        """Number of batches."""
        return len(self._kept)

    def get(self, batch: int, name: str) -> NDArray[Any]:
        """A value of one batch."""
        value = self._kept[batch][name]
        return np.load(value) if isinstance(value, Path) else value

    def put(self, batch: int, name: str, value: NDArray[Any]) -> None:
        """Keeps a value of one batch; a former one of its name goes."""
        self.drop(batch, name)
        if value.nbytes <= _SMALL_BYTES:
            self._kept[batch][name] = value
            return
        self._files += 1
        path = self.folder / f"{id(self)}.{self._files}.npy"
        np.save(path, value)
        self._kept[batch][name] = path

    def drop(self, batch: int, name: str) -> None:
        """Forgets a value."""
        value = self._kept[batch].pop(name, None)
        if isinstance(value, Path):
            value.unlink()

    def drop_all_but(self, names: set[str]) -> None:
        """Forgets the values that nothing needs any more."""
        for batch, kept in enumerate(self._kept):
            for name in [each for each in kept if each not in names]:
                self.drop(batch, name)

    def names(self) -> set[str]:
        """Names of the values that are there."""
        return set(self._kept[0]) if self._kept else set()

    def kinds(self) -> dict[str, np.dtype[Any]]:
        """Their types."""
        return {name: self.get(0, name).dtype for name in self._kept[0]}


def walk(
    proto: onnx.ModelProto, lanes: Sequence[Lane], stops: Sequence[Sequence[str]], threads: int | None
) -> Iterator[int]:
    """Computes the values of each stop in all lanes, one stop after the other.

    Args:
        proto: a rewritten model.
        lanes: where values come from and go to.
        stops: names of values, in data-flow order; the last one should hold the model's outputs.
        threads: of the sessions.

    Yields:
        The index of each stop once its values are there. What is put in their place then is what later nodes read.
    """
    plan = Plan(proto)
    parts = list(plan.segments(stops))
    reads = [{name for index in nodes for name in plan._reads[index]} for nodes, _ in parts]
    for place, (nodes, made) in enumerate(parts):
        if nodes:
            segment = plan.model(nodes, made, lanes[0].kinds())
            wanted = {value.name for value in segment.graph.input}  # defaults of controls among them
            session = open_session(segment, threads=threads)
            for lane in lanes:
                for batch in range(lane.batches):
                    feeds = {name: lane.get(batch, name) for name in wanted & lane.names()}
                    controls = {**lane.controls, "emu.sample": np.asarray(lane.firsts[batch], np.int64)}
                    feeds |= {name: value for name, value in controls.items() if name in wanted}
                    for name, value in zip(made, session.run(made, feeds), strict=True):
                        lane.put(batch, name, value)
        yield place
        later = set().union(*reads[place + 1 :], *(set(stop) for stop in stops[place + 1 :]))
        for lane in lanes:
            lane.drop_all_but(later)


def temporary_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for values that wait."""
    return tempfile.TemporaryDirectory(prefix="emu-repair-")
