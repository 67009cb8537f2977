"""Multi-token prediction against an independent transcription, its loss, and `mtp.*` in folders."""

import json

import pytest
import torch
import torch.nn.functional as F
from cases import Case, exactly, of_scale, relative, widened
from hybrid.published import PREFIX, save_published_folder
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from torchtune_qwenvl import load_model, save_model
from torchtune_qwenvl.checkpoints.adapters.peft_export import save_adapter
from torchtune_qwenvl.checkpoints.adapters.peft_import import adapter_arguments, load_adapter
from torchtune_qwenvl.data import collate

LORA = {"lora_attn_modules": ["q_proj", "v_proj"], "lora_rank": 2, "lora_alpha": 4}


@pytest.fixture(scope="module", params=["qwen3_5", "qwen3_5_moe"])
def source(request, tmp_path_factory):
    return save_published_folder(tmp_path_factory.mktemp(request.param) / "source", request.param)


def norm(x, weight):
    return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (1 + weight)


def transcription(mtp, text, embeddings, states, positions, rotary):
    """States of one document, written from the published description; `rotary` is transformers'."""
    d, repeat = text.head_dim, text.num_attention_heads // text.num_key_value_heads
    following = torch.cat([embeddings[1:], embeddings[:1]])
    parts = [
        norm(following, mtp["mtp.pre_fc_norm_embedding.weight"]),
        norm(states, mtp["mtp.pre_fc_norm_hidden.weight"]),
    ]
    x = torch.cat(parts, -1) @ mtp["mtp.fc.weight"].T
    of = {name.removeprefix(PREFIX): tensor for name, tensor in mtp.items()}
    h = norm(x, of["input_layernorm.weight"])
    q, gate = (h @ of["self_attn.q_proj.weight"].T).view(len(x), -1, 2 * d).chunk(2, -1)
    k, v = ((h @ of[f"self_attn.{name}_proj.weight"].T).view(len(x), -1, d) for name in "kv")
    q, k = norm(q, of["self_attn.q_norm.weight"]), norm(k, of["self_attn.k_norm.weight"])
    cos, sin = (table[0][:, None] for table in rotary(x, positions.T[:, None]))
    q, k = (turned(part, cos, sin) for part in (q, k))
    k, v = (part.repeat_interleave(repeat, 1) for part in (k, v))
    scores = torch.einsum("ihd,jhd->hij", q, k) * d**-0.5
    scores = scores.masked_fill(torch.ones(len(x), len(x)).triu(1).bool(), float("-inf"))
    mixed = torch.einsum("hij,jhd->ihd", scores.softmax(-1), v) * gate.sigmoid()
    x = x + mixed.flatten(1) @ of["self_attn.o_proj.weight"].T
    h = norm(x, of["post_attention_layernorm.weight"])
    x = x + (dense(of, h) if "mlp.gate_proj.weight" in of else mixture(of, h, text))
    return norm(x, mtp["mtp.norm.weight"])


def turned(x, cos, sin):
    width = cos.shape[-1]
    part, rest = x[..., :width], x[..., width:]
    half = torch.cat([-part[..., width // 2 :], part[..., : width // 2]], -1)
    return torch.cat([part * cos + half * sin, rest], -1)


def dense(of, h, name="mlp"):
    gate, up = (h @ of[f"{name}.{kind}_proj.weight"].T for kind in ("gate", "up"))
    return (F.silu(gate) * up) @ of[f"{name}.down_proj.weight"].T


def mixture(of, h, text):
    chances = (h @ of["mlp.gate.weight"].T).softmax(-1)
    weights, chosen = chances.topk(text.num_experts_per_tok)
    weights = weights / weights.sum(-1, keepdim=True)
    out = []
    for row, ws, es in zip(h, weights, chosen, strict=True):
        halves = [(of["mlp.experts.gate_up_proj"][e] @ row).chunk(2) for e in es]
        each = [
            of["mlp.experts.down_proj"][e] @ (F.silu(a) * b) for e, (a, b) in zip(es, halves, strict=True)
        ]
        out.append(sum(w * one for w, one in zip(ws, each, strict=True)))
    shared = (h @ of["mlp.shared_expert_gate.weight"].T).sigmoid() * dense(of, h, "mlp.shared_expert")
    return torch.stack(out) + shared


def test_loss_and_every_gradient_equal_the_transcription(source):
    """Both losses, in fp64, for packed documents with images: no document sees its neighbour."""
    hf = AutoModelForImageTextToText.from_pretrained(source, experts_implementation="eager").double()
    rows = [3, (1, 4, 6), 9], [1], [2], [3], [12], [2, (1, 8, 4), 6]
    case = Case(hf, *rows, labelled=20)
    weight = 0.3
    ours = load_model(source, dtype=torch.float64, mtp_trainable=True, mtp_loss_weight=weight).train()
    tensors = load_file(source / "model.safetensors").items()
    mtp = {name: x.double().requires_grad_() for name, x in tensors if name.startswith("mtp.")}
    with exactly():
        batch = widened(collate(case.samples, padding_free=True))
        losses = ours(**batch, return_router_loss=True)
        (losses.loss_sum / losses.labelled).backward()
        main, further, n = 0.0, 0.0, 0
        for row in range(len(rows)):
            one, sample = case.only(row), case.samples[row]
            inputs = widened(one.reference_inputs())
            labels = inputs.pop("labels")[0]
            logits, embeddings, hidden = watched(hf, inputs)
            main = main + F.cross_entropy(logits[:-1], labels[1:], reduction="sum")
            n += int((labels[1:] != -100).sum())
            if len(labels) > 2:
                positions = torch.as_tensor(sample["input_pos"])
                rotary = hf.model.language_model.rotary_emb
                text = hf.config.text_config
                states = transcription(mtp, text, embeddings, hidden, positions, rotary)
                predicted = hf.lm_head(states)
                further = further + F.cross_entropy(predicted[:-2], labels[2:], reduction="sum")
        ((main + weight * further) / n).backward()
    assert losses.labelled == n
    assert abs(losses.mtp_loss_sum - further) <= 1e-6 * further
    assert abs(losses.loss_sum - main) <= 1e-6 * main  # the value is the cross-entropy alone
    gradients = dict(ours.named_parameters())
    for name, tensor in mtp.items():
        (our_name,) = ours_of(ours, name)
        assert relative(gradients[our_name].grad, tensor.grad) <= 1e-6, name
    embedding = hf.model.language_model.embed_tokens.weight.grad
    assert relative(ours.decoder.tok_embeddings.weight.grad, embedding) <= 1e-6
    assert relative(ours.decoder.output.weight.grad, hf.lm_head.weight.grad) <= 1e-6


def watched(hf, inputs):
    """Logits, embeddings with visual tokens in their places, and what the head gets, of one row."""
    seen, text = {}, hf.model.language_model
    hooks = [
        text.register_forward_pre_hook(
            lambda _, args, kwargs: seen.update(x=kwargs["inputs_embeds"][0]), with_kwargs=True
        ),
        text.norm.register_forward_hook(lambda *args: seen.update(states=args[-1][0])),
    ]
    logits = hf(**inputs).logits[0]
    for hook in hooks:
        hook.remove()
    return logits, seen["x"], seen["states"]


def ours_of(model, name):
    from torchtune_qwenvl.models import get_family

    return get_family(model.config).weights.ours(name)


def test_what_is_not_trained_travels_byte_for_byte(source, tmp_path):
    model = load_model(source)
    assert not any(name.startswith("mtp") for name, _ in model.named_parameters())
    with torch.no_grad():
        model.decoder.norm.scale.add_(1)
    before = load_file(source / "model.safetensors")
    after = load_file(save_model(model, tmp_path / "out", source=source) / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"model.language_model.norm.weight"}
    _, info = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values())


def test_what_is_trained_is_saved_and_comes_back(source, tmp_path):
    model = load_model(source, mtp_trainable=True)
    out = save_model(model, tmp_path / "same", source=source)
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("mtp."):
                parameter.add_(1)
    before = load_file(source / "model.safetensors")
    after = load_file(save_model(model, tmp_path / "out", source=source) / "model.safetensors")
    for name in before:
        assert torch.equal(after[name], before[name] + 1 if name.startswith("mtp.") else before[name]), name


def test_it_trains_next_to_lora_and_an_adapter_folder_holds_it(source, tmp_path):
    parts = {"encoder_trainable": "frozen", "fusion_trainable": "frozen", "decoder_trainable": "lora"}
    experts = {"experts_trainable": False} if "moe" in str(source) else {}
    model = load_model(source, **parts, **LORA, **experts, mtp_trainable=True)
    assert all(p.requires_grad for name, p in model.named_parameters() if name.startswith("mtp."))
    assert model.adapter_params() == [n for n, _ in model.named_parameters() if n.startswith("mtp.")]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)
    folder = save_adapter(model, tmp_path / "adapter", source=source)
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["modules_to_save"] is None  # transformers has no such modules
    arguments = adapter_arguments(folder, source)
    assert arguments["mtp_trainable"] is True
    again = load_adapter(load_model(source, **arguments), folder)
    pairs = zip(model.named_parameters(), again.named_parameters(), strict=True)
    assert all(one == other and torch.equal(p, q) for (one, p), (other, q) in pairs)


def test_generation_and_logits_do_not_see_it(source):
    plain, predicting = load_model(source).eval(), load_model(source, mtp_trainable=True).eval()
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert of_scale(predicting(tokens), plain(tokens)) == 0
        labels = tokens.clone()
        assert plain(tokens, labels=labels)[0] == predicting(tokens, labels=labels)[0]


def test_logits_alone_cannot_train_it(source):
    """As torchtune's stock recipes would: the layers would stay as they are without a word."""
    model = load_model(source, mtp_trainable=True).train()
    with pytest.raises(ValueError, match=r"mtp_trainable needs the loss of this model.*set it to false"):
        model(torch.arange(20)[None])


def test_a_folder_without_the_layers_is_told(source, tmp_path):
    without = tmp_path / "without"
    without.mkdir()
    for path in source.iterdir():
        (without / path.name).write_bytes(path.read_bytes())
    weights = {n: x for n, x in load_file(source / "model.safetensors").items() if not n.startswith("mtp.")}
    save_file(weights, without / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"mtp\.fc\.weight.*Set mtp_trainable to false"):
        load_model(without, mtp_trainable=True)
    load_model(without)
    config = json.loads((without / "config.json").read_text())
    del config["text_config"]["mtp_num_hidden_layers"]
    (without / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mtp_num_hidden_layers 0, expected 1"):
        load_model(without, mtp_trainable=True)
    with pytest.raises(ValueError, match="mtp_loss_weight: expected a number above 0, got 0"):
        load_model(source, mtp_trainable=True, mtp_loss_weight=0)
