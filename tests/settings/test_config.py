"""Names, includes, overrides, and errors for keys and arguments that do not exist."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from torchtune_qwenvl.settings.config import main, parse_arguments, resolve
from torchtune_qwenvl.settings.files import merge, packaged_names
from torchtune_qwenvl.settings.stock import for_stock_recipe

NAME = "qwen2_5_vl/3B_lora"


def test_override_of_every_kind() -> None:
    overrides = [
        "batch_size=3",
        "optimizer.lr=1e-3",
        "model.lora_attn_modules=[q_proj]",
        "clip_grad_norm=null",
    ]
    overrides += ["dataset=torchtune_qwenvl.data.vision_chat_dataset", "dataset.source=a=b.json"]
    cfg = resolve(NAME, [*overrides, "~optimizer.fused"])
    assert cfg.batch_size == 3 and cfg.optimizer.lr == 1e-3 and cfg.model.lora_attn_modules == ["q_proj"]
    assert cfg.dataset._component_.endswith("vision_chat_dataset") and cfg.dataset.source == "a=b.json"
    assert "fused" not in cfg.optimizer and cfg.clip_grad_norm is None


def test_another_component_keeps_the_arguments_that_it_takes() -> None:
    cfg = resolve(NAME, ["optimizer.lr=0.5", "optimizer=torch.optim.SGD", "optimizer.nesterov=true"])
    # Weight decay and `fused` are AdamW's in base.yaml: nobody wrote them.
    assert cfg.optimizer == {"_component_": "torch.optim.SGD", "lr": 0.5, "nesterov": True}
    assert resolve(NAME, ["optimizer=torchao.optim.AdamW8bit"]).optimizer.lr == 2e-4  # the file's
    wandb = resolve(NAME, ["metric_logger=torchtune.training.metric_logging.WandBLogger"]).metric_logger
    assert wandb.log_dir == "outputs/qwen2_5_vl_3B/logs"
    qlora = resolve("qwen2_5_vl/3B_qlora").model
    component = "torchtune_qwenvl.models.qwen2_5_vl.qwen2_5_vl_from_config"
    swapped = resolve("qwen2_5_vl/3B_qlora", [f"model={component}", "model.config=here"]).model
    assert swapped == {**qlora, "_component_": component, "config": "here"}
    assert merge({"a": {"_component_": "x", "b": 1}}, {"a": {"_component_": "x", "c": 2}}) == {
        "a": {"_component_": "x", "b": 1, "c": 2}
    }


def test_arguments_that_the_new_component_does_not_take_are_refused() -> None:
    scheduler = "lr_scheduler=torch.optim.lr_scheduler.ConstantLR"
    with pytest.raises(ValueError, match=r"'lr_scheduler\.num_warmup_steps': .* no such argument.*~lr_sched"):
        resolve(NAME, [scheduler])
    assert "num_warmup_steps" not in resolve(NAME, [scheduler, "~lr_scheduler.num_warmup_steps"]).lr_scheduler


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("+batch_size=2", r"got '\+batch_size=2'. Write batch_size=VALUE"),
        ("--batch_size=2", "Write batch_size=VALUE"),
        ("batch_size", "form key=value, got 'batch_size'"),
        ("batchsize=2", "Unknown config key 'batchsize'. Did you mean 'batch_size'"),
        ("learning_rates.encode=1", "Did you mean 'learning_rates.encoder'"),
        ("optimizer.weight_decy=1", "no such argument. Did you mean 'weight_decay'"),
        ("model.lora_rnk=1", "no such argument. Did you mean 'lora_rank'"),
        ("optimizer=torch.optim.AdmW", "no component 'torch.optim.AdmW'"),
        ("batch_size=two", "'batch_size': expected a whole number of at least 1, got 'two'"),
        ("metric_logger=3", "'metric_logger': expected a component"),
        ("~optimizer.fusd", "no such key. Did you mean 'fused'"),
        (
            "collate_fn=torchtune_qwenvl.data.colate",
            "'collate_fn': no component 'torchtune_qwenvl.data.colate'",
        ),
        ("loss=torch.nn.CrossEntropyLos", "'loss': no component 'torch.nn.CrossEntropyLos'"),
    ],
)
def test_errors_of_the_command_line(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(NAME, [override])


def test_null_keeps_all_step_folders() -> None:
    assert resolve(NAME, ["keep_last_n=null"]).keep_last_n is None
    with pytest.raises(ValueError, match="'batch_size': expected a whole number of at least 1, got None"):
        resolve(NAME, ["batch_size=null"])


def test_a_config_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text("seed: 3\nbatch_size: 4\n")
    (tmp_path / "mine.yaml").write_text(f"include: [{NAME}, shared]\nbatch_size: 5\n")
    cfg = resolve(str(tmp_path / "mine.yaml"))
    assert (cfg.seed, cfg.batch_size, cfg.model.lora_rank) == (3, 5, 16)
    (tmp_path / "shared.yaml").write_text("seeed: 3\n")
    with pytest.raises(ValueError, match="Unknown config key 'seeed'\\. Did you mean 'seed'"):
        resolve(str(tmp_path / "mine.yaml"))
    (tmp_path / "shared.yaml").write_text("include: mine\n")
    with pytest.raises(ValueError, match="includes itself"):
        resolve(str(tmp_path / "mine.yaml"))


def test_a_config_of_ones_own_from_parts(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("include: [qwen2_5_vl/_3B, qwen2_5_vl/_lora]\n")
    assert resolve(str(tmp_path / "mine.yaml")) == resolve(NAME)
    (tmp_path / "_lora.yaml").write_text("batch_size: 9\n")  # a file next to it comes first
    (tmp_path / "mine.yaml").write_text("include: [qwen2_5_vl/_3B, _lora]\n")
    assert resolve(str(tmp_path / "mine.yaml")).batch_size == 9


def test_unknown_name_suggests_one() -> None:
    with pytest.raises(ValueError, match=rf"No config called 'qwen2_5_vl/3B_lor'\. Did you mean '{NAME}'"):
        resolve("qwen2_5_vl/3B_lor")
    with pytest.raises(ValueError, match="Expected --config NAME"):
        parse_arguments(["batch_size=2"])
    assert "qwen2_5_vl/7B_stage1" in packaged_names() and "base" not in packaged_names()


def test_printed_config_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    overrides = ["batch_size=7", "output_dir=here"]
    main([NAME, *overrides])
    (tmp_path / "copy.yaml").write_text(capsys.readouterr().out)
    copy = resolve(str(tmp_path / "copy.yaml"))
    assert copy == OmegaConf.to_container(resolve(NAME, overrides), resolve=True)
    assert copy.metric_logger.log_dir == "here/logs"


def test_stock_form_has_what_the_stock_recipes_read() -> None:
    cfg = for_stock_recipe(resolve(NAME, ["dataset=torchtune_qwenvl.data.vision_chat_dataset"]))
    assert cfg.checkpointer.checkpoint_dir == cfg.tokenizer.folder
    switches = {"compile", "optimizer_in_bwd", "resume_from_checkpoint"}
    assert {"device", "loss", "max_steps_per_epoch", "collate_fn", *switches} <= cfg.keys()
    assert "finish" not in cfg and "learning_rates" not in cfg


@pytest.mark.parametrize("slot", ["dataset", "val_dataset"])
def test_a_source_alone_is_read_by_our_dataset(slot: str):
    node = resolve("qwen2_5_vl/3B_lora", [f"{slot}.source=data.json"])[slot]
    assert node == {"_component_": "torchtune_qwenvl.data.vision_chat_dataset", "source": "data.json"}


def test_a_list_of_datasets_is_a_mix(tmp_path: Path) -> None:
    text = "include: qwen2_5_vl/3B_lora\ndataset:\n- {weight: 0.75, source: a.jsonl}\n"
    (tmp_path / "mix.yaml").write_text(f"{text}- {{weight: 0.25, source: b.jsonl, label: charts}}\n")
    node = resolve(str(tmp_path / "mix.yaml")).dataset
    assert node._component_ == "torchtune_qwenvl.data.mixed_dataset"
    assert {member._component_ for member in node.datasets} == {"torchtune_qwenvl.data.vision_chat_dataset"}
    assert [member.source for member in node.datasets] == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("dataset=[{weight: 0.5, source: a}, {weight: 0.6, source: b}]", "'dataset': .* sum of 1, got 1.1"),
        ("dataset=[{weight: 0.5, source: a}, {source: b}]", "'dataset': .*a weight for all 2 or for none"),
        ("val_dataset=[{weight: -1, source: a}]", "'val_dataset': .*at least 0, dataset 0 .* has -1"),
        ("dataset=[a.jsonl]", r"'dataset': expected a list of datasets, each with keys.*'a.jsonl'"),
        ("dataset=[]", "at least one dataset, got none"),
        (
            "dataset=[{_component_: torchtune.datasets.PackedDataset, weight: 1, dss: 3}]",
            "'dataset.datasets.0.dss': .* no such argument. Did you mean 'ds'",
        ),
    ],
)
def test_mixes_that_do_not_fit(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resolve(NAME, [override])
