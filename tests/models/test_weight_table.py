"""The table of names: both directions agree, on every parameter, in every layout of the files."""

import pytest
import tiny
import torch
from cases import constants

from torchtune_qwenvl.models import get_family
from torchtune_qwenvl.models.weight_table import Slice, WeightTable, fits

TOY = WeightTable(
    rows={
        "net.layers.{i}.fused.{p}": ("ours.{i}.a.{p}", "ours.{i}.b.{p}"),
        "net.norm.weight": "ours.norm.scale",
    },
    prefixes={"net.": "net.", "old.": "net."},
)


def test_a_row_holds_several_of_ours_and_each_finds_its_place():
    assert TOY.ours("net.layers.12.fused.bias") == ("ours.12.a.bias", "ours.12.b.bias")
    assert TOY.ours("old.layers.0.fused.weight") == ("ours.0.a.weight", "ours.0.b.weight")
    piece = TOY.theirs("ours.3.b.weight")
    assert (piece.name, piece.index, piece.count) == ("net.layers.3.fused.weight", 1, 2)


def test_unknown_names_are_told():
    assert TOY.ours("net.layers.x.fused.weight") == ()
    assert TOY.ours("net.norm.bias") == ()
    with pytest.raises(ValueError, match=r"ours\.norm\.weight: no row"):
        TOY.theirs("ours.norm.weight")


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_parameter_of_the_model_has_one_place_in_transformers(family, tie):
    hf = tiny.tiny_hf_model(family=family, tie=tie)
    family = get_family(hf.config.to_dict())
    with torch.device("meta"):
        ours = {name for name, _ in family.from_config(hf.config.to_dict()).named_parameters()}
    theirs = [*dict(hf.named_parameters()), *constants(hf)]
    assert sorted(our for name in theirs for our in family.weights.ours(name)) == sorted(ours)
    for name in theirs:
        for index, our in enumerate(family.weights.ours(name)):
            piece = family.weights.theirs(our)
            assert (piece.name, piece.index) == (name, index)


def test_a_kernel_is_flattened_and_a_matrix_is_never_reshaped():
    assert fits((64, 3, 2, 14, 14), [(64, 1176)])
    assert fits((192, 64), [(64, 64)] * 3)
    assert fits((192, 64), [(32, 64), (32, 64), (128, 64)])  # parts of different heights
    assert fits((192, 1, 4), [(192, 4)])  # kernels of single channels
    assert not fits((96, 64), [(64, 96)])
    assert not fits((64, 3, 2, 14, 14), [(128, 588)])
    assert not fits((64, 64), [(64, 64)] * 3)
    assert not fits((192, 64), [(32, 64), (32, 64), (64, 64)])
    assert not fits((8, 8), [(64,)])


def test_experts_that_lie_apart_in_files_are_slices_of_ours():
    table = get_family({"model_type": "glm4v_moe"}).weights
    layer = "model.language_model.layers.7.mlp.experts"
    expert, piece = table.slice_of(f"{layer}.12.up_proj.weight")
    assert (expert, piece) == (12, Slice("decoder.layers.7.mlp.experts.w1.weight", 1, 2))
    assert table.ours(f"{layer}.12.up_proj.weight") == table.ours(f"{layer}.gate_up_proj") == (piece.ours,)
    assert table.slice_of(f"{layer}.gate_up_proj") is None
    assert table.slice_of("model.language_model.layers.7.mlp.shared_experts.up_proj.weight") is None
