"""What a compiled layer costs: the graphs that torch.compile makes, with neighbouring small kernels as one.

A model of torch's compiler, not its output: products and attention stay kernels of their own, and everything
between them that lies at the same depth is one kernel, which reads its inputs and writes its outputs once.
"""

import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

from rehearsal.cost import FREE, nbytes, tensors_in
from rehearsal.meter import Meter

PRODUCTS = frozenset(("mm", "addmm", "addmm_", "bmm", "_varlen_attn", "_varlen_attn_backward", "_grouped_mm"))


class Layer(NamedTuple):
    """Seconds of a layer's forward and backward pass, and bytes that it keeps between them."""

    forward: float
    backward: float
    kept: int


def compiled_layer(layer: Any, x: Tensor, options: dict[str, Any], meter: Meter) -> Layer:
    """Cost of a compiled layer; call it outside of the fake mode, with fake tensors.

    Args:
        layer: a transformer layer.
        x: its input.
        options: its other arguments.
        meter: for the cost of products.
    """
    graphs: dict[str, fx.GraphModule] = {}

    def keep(name: str) -> Any:
        def compiler(graph: fx.GraphModule, _: Any) -> Any:
            graphs[name] = graph
            return graph.forward

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"),
        bw_compiler=keep("backward"),
        partition_fn=min_cut_rematerialization_partition,
    )
    torch._dynamo.reset()
    meter.segments = options["segments"].lengths
    with torch.autocast("cuda", torch.bfloat16):
        out = torch.compile(layer.forward, backend=backend, dynamic=False)(x, **options)
    with torch.autograd.set_multithreading_enabled(False):
        out.backward(out.detach())
    forward = graph_seconds(graphs["forward"], meter)
    return Layer(forward, graph_seconds(graphs["backward"], meter), _kept(graphs["forward"]))


def graph_seconds(graph: fx.GraphModule, meter: Meter) -> float:
    """Seconds of a graph by the roofline."""
    group = _groups(graph.graph.nodes)
    total = 0.0
    read: dict[int, set[fx.Node]] = {}
    written: dict[int, set[fx.Node]] = {}
    for node in graph.graph.nodes:
        if _is_product(node):
            total += _product_seconds(node, meter)
        for source in map(_source, node.all_input_nodes):
            here, there = group.get(node), group.get(source)
            if here == there:
                continue
            if here is not None:
                read.setdefault(here, set()).add(source)
            if there is not None:
                written.setdefault(there, set()).add(source)
    for index in set(group.values()):
        nodes = read.get(index, set()) | written.get(index, set())
        moved = sum(_bytes(node) for node in nodes)
        total += meter.memory_seconds(moved)
    return total


def _groups(nodes: Iterable[fx.Node]) -> dict[fx.Node, int]:
    """The number of the group of each small kernel: connected, with as many products before them."""
    depth: dict[fx.Node, int] = {}
    group: dict[fx.Node, int] = {}
    members: dict[int, list[fx.Node]] = {}
    for number, node in enumerate(nodes):
        sources = [_source(source) for source in node.all_input_nodes]
        depth[node] = max((depth[s] + _is_product(s) for s in sources), default=0)
        if not _is_small(node):
            continue
        group[node], members[number] = number, [node]
        for source in sources:
            if source in group and depth[source] == depth[node] and group[source] != group[node]:
                joined = members.pop(group[source])
                members[group[node]] += joined
                group.update(dict.fromkeys(joined, group[node]))
    return group


def _name(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.split("::")[1]


def _is_product(node: fx.Node) -> bool:
    return node.op == "call_function" and _name(node) in PRODUCTS


def _is_small(node: fx.Node) -> bool:
    name = _name(node)
    return node.op == "call_function" and bool(name) and name not in PRODUCTS and name not in FREE


def _source(node: fx.Node) -> fx.Node:
    """The node whose memory a view or an item of a result is."""
    while node.op == "call_function" and (node.target is operator.getitem or _name(node) in FREE):
        if not node.all_input_nodes:
            break
        node = node.all_input_nodes[0]
    return node


def _bytes(node: fx.Node) -> int:
    return sum(nbytes(tensor) for tensor in tensors_in(node.meta.get("val")) if tensor.device.type == "cuda")


def _product_seconds(node: fx.Node, meter: Meter) -> float:
    def value(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda n: n.meta["val"])

    arguments = tuple(value(argument) for argument in node.args)
    return meter.product_seconds(node.target, _name(node), arguments, node.meta["val"])


def _kept(graph: fx.GraphModule) -> int:
    """Bytes of what the forward pass keeps, without its inputs and its result."""
    outputs: Sequence[Any] = next(n for n in graph.graph.nodes if n.op == "output").args[0]
    saved = {_source(node) for node in outputs[1:] if isinstance(node, fx.Node)}
    return sum(_bytes(node) for node in saved if node.op != "placeholder")
