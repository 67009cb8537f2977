"""Images with labels in a data set of the `datasets` library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torchtune_qwenvl.data.labelled.dataset import LabelledImages, number_classes


def hub_images(
    source: Any,
    split: str = "train",
    image_column: str = "image",
    label_column: str = "label",
    class_names: Sequence[str] | None = None,
    channels: int = 3,
    **load_dataset_kwargs: Any,
) -> LabelledImages:
    """A data set of the `datasets` library: a folder of `save_to_disk`, or what `load_dataset` takes.

    Args:
        source: the folder, a name, or a `datasets.Dataset`. Set HF_DATASETS_OFFLINE=1 to read a name from
            the cache only.
        split: also slices, such as "train[:10%]".
        image_column: column of images; they are decoded here, as files are.
        label_column: column of labels: ClassLabel, text or numbers.
        class_names: None takes those of the ClassLabel, or sorts what occurs.
        channels: 3, or 1 for grey.
        **load_dataset_kwargs: passed on to `datasets.load_dataset`.

    Raises:
        ValueError: nothing there, a split or a column that is missing.
    """
    data, name = _open(source, split, load_dataset_kwargs)
    for column in (image_column, label_column):
        if column not in data.column_names:
            raise ValueError(f"{name}: no column '{column}', the columns are {', '.join(data.column_names)}")
    feature = data.features[label_column]
    written = data[label_column]
    if class_names is None and (of_feature := getattr(feature, "names", None)):
        labels, classes = list(written), list(of_feature)
    else:
        if of_feature := getattr(feature, "names", None):
            written = [of_feature[number] for number in written]
        places = [f"{name}, row {i} (from 0)" for i in range(len(data))]
        labels, classes = number_classes(written, class_names, places)
    images = _Encoded(data, image_column)
    return LabelledImages(images, labels, classes, name=name, channels=channels)


def _open(source: Any, split: str, options: dict[str, Any]) -> tuple[Any, str]:
    import datasets

    if isinstance(source, datasets.Dataset):
        return source, "the dataset"
    name = f"{source} {split}"
    if not (Path(source) / "state.json").is_file() and not (Path(source) / "dataset_dict.json").is_file():
        return datasets.load_dataset(source, split=split, **options), name
    found = datasets.load_from_disk(str(source))
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"{source}: no split '{split}', the splits are {', '.join(found)}")
        found = found[split]
    return found, name


class _Encoded(Sequence[Any]):
    """The column's images as they are stored, so that a damaged one is reported by our decoder."""

    def __init__(self, data: Any, column: str) -> None:
        import datasets

        if isinstance(data.features[column], datasets.Image):
            data = data.cast_column(column, datasets.Image(decode=False))
        self.data, self.column = data.select_columns([column]), column

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Any) -> Any:
        value = self.data[index][self.column]
        return (value["bytes"] or value["path"]) if isinstance(value, dict) else value
