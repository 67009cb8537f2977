"""How many graphs torch.compile makes of a layer on the fake GPU, over batches of changing sizes."""

from typing import Any

import torch
from torch._dynamo.utils import counters

from rehearsal.machine import GPU, fake_gpu, gpu_answers
from rehearsal.work import Case, build, to_gpu
from torchtune_qwenvl.modules.attention import Segments, boundaries_of, use_attention_backend

# Documents of a row, frames of a batch: more and fewer of them, equal and unequal ones.
LENGTHS = ([100, 200], [500, 12], [64], [300, 300, 100], [7, 7, 7, 7])


def count(case: Case) -> dict[str, Any]:
    """Graphs of one decoder layer and one encoder layer, and why the compiler broke them up.

    Fake tensors outside of their mode: inside of it the compiler does not run.
    """
    use_attention_backend("flash")
    torch._dynamo.reset()
    counters.clear()
    model = build(case)
    decoder, encoder = model.decoder, model.vision_encoder
    towers = (
        (decoder.layers[0], decoder.tok_embeddings.weight.shape[1], decoder.rotary, 3),
        (encoder.layers[0], encoder.embed_dim, encoder.rotary, 2),
    )
    with fake_gpu({}):
        to_gpu(model, GPU)
        inputs = [[inputs_of(lengths, *tower[1:]) for lengths in LENGTHS] for tower in towers]
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    with gpu_answers({}):
        for (layer, *_), calls in zip(towers, inputs, strict=True):
            compiled = torch.compile(layer.forward, backend=backend, dynamic=True)
            for x, options in calls:
                with torch.autocast("cuda", torch.bfloat16):
                    assert compiled(x, **options).dtype == torch.bfloat16
    return {"graphs": len(graphs), "breaks": dict(counters["graph_break"])}


def inputs_of(lengths: list[int], width: int, rotary: Any, axes: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """Input and other arguments of a layer; `axes` are those of its positions, 3 in a decoder."""
    n = sum(lengths)
    boundaries = torch.empty_like(boundaries_of(lengths), device=GPU)
    x = torch.empty(n, width, device=GPU, dtype=torch.bfloat16, requires_grad=True)
    dtype = torch.bfloat16 if axes == 3 else torch.float32
    rotation = rotary(torch.empty(n, axes, device=GPU, dtype=torch.int64), dtype)
    return x, {"rotation": rotation, "segments": Segments.of(lengths, GPU, boundaries)}
