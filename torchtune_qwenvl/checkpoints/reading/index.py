"""model.safetensors.index.json: which file of a folder holds which tensor."""

from pathlib import Path

from torchtune_qwenvl.entries import OBJECT, check_entries
from torchtune_qwenvl.json_files import read_json


def read_weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, of an index.

    Raises:
        ValueError: the index is broken, or names something that is no file of the folder.
    """
    index = read_json(path)
    check_entries(index, {"metadata": OBJECT, "weight_map": OBJECT}, str(path))
    found = index.get("weight_map")
    if not found:
        raise ValueError(f"{path}: expected a `weight_map` of tensor names to file names")
    for tensor, file in found.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or not file.isprintable():
            raise ValueError(f"{path}: expected a safetensors file for the tensor {tensor!a}, got {file!a}")
        if len(file) > 255 or Path(file).name != file or "\\" in file:
            raise ValueError(f"{path}: names a file outside the folder, {file!r}, for the tensor {tensor!a}")
    return found


def check_shards(folder: Path, weight_map: dict[str, str], wanted: list[str]) -> None:
    """Raise a ValueError if one of the `wanted` files is missing; it names tensors that would be in it."""
    for name in wanted:
        if not (folder / name).is_file():
            lost = [tensor for tensor, file in weight_map.items() if file == name]
            raise ValueError(
                f"{folder}: shard {name} is missing ({len(lost)} tensors, {lost[0]} among them); "
                "download it again"
            )
