"""The files of a checkpoint folder next to its weights: what a folder written from it gets, too."""

from pathlib import Path

# Other forms of the weights: a saved folder must not carry the old ones along.
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".onnx",
    ".h5",
    ".msgpack",
    ".safetensors.index.json",
    ".bin.index.json",
)
# Would say of the written weights what is true of others: that there is an adapter, or a quantisation.
_CONTRADICTING = ("adapter_config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json")
# What transformers' processors and tokenizers read from folders within the folder.
_FOLDERS = {"additional_chat_templates": "*.jinja"}


def find_sidecars(folder: Path) -> list[Path]:
    """Every file without weights that a tokenizer, a processor or a person reads.

    Config, tokenizer, templates, processor, licence; the files of `additional_chat_templates/`, too.
    """
    found = [path for path in sorted(folder.iterdir()) if path.is_file()]
    found = [p for p in found if not p.name.endswith(WEIGHT_SUFFIXES) and p.name not in _CONTRADICTING]
    for name, pattern in _FOLDERS.items():
        found += [path for path in sorted((folder / name).glob(pattern)) if path.is_file()]
    return found
