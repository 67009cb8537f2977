"""A dataset of your own: a folder of images, each with a caption in a text file of the same name.

    dataset:
      _component_: custom_dataset.caption_folder
      folder: my_images

or on the command line, in the folder of this file:

    tune-qwenvl run finetune --config NAME dataset=custom_dataset.caption_folder dataset.folder=my_images

A dataset is a function that takes the transform first, then the arguments in the config. It returns anything
with `__len__` and `__getitem__` whose samples come from the transform.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset
from torchtune.data import Message

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


def caption_folder(tokenizer: Callable, *, folder: str, question: str = "Describe this image.") -> Dataset:
    """Images of `folder` with their captions.

    Raises:
        ValueError: there is no image in the folder.
    """
    images = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in SUFFIXES)
    if not images:
        raise ValueError(f"{folder}: expected images ending in {', '.join(SUFFIXES)}, found none")
    return CaptionFolder(tokenizer, images, question)


class CaptionFolder(Dataset):
    """One sample per image."""

    def __init__(self, transform: Callable, images: list[Path], question: str) -> None:
        self.transform, self.images, self.question = transform, images, question

    def __len__(self) -> int:
        return len(self.images)

    def where(self, index: int) -> str:
        """Optional: names the sample in error messages."""
        return str(self.images[index])

    def size(self, index: int) -> Any:
        """Optional: tokens and patches without decoding, for `pack_to` and `batch_tokens`."""
        return self.transform.size(self.conversation(index))

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        return self.transform(self.conversation(index))

    def conversation(self, index: int) -> dict[str, Any]:
        """Question and caption; a user's message is masked, so only the caption is trained on."""
        image = self.images[index]
        caption = image.with_suffix(".txt")
        if not caption.is_file():
            raise ValueError(
                f"expected the caption in {caption}, found no file: write it or remove the image"
            )
        asked = [{"type": "image", "content": image}, {"type": "text", "content": self.question}]
        answer = Message("assistant", caption.read_text(encoding="utf-8").strip())
        return {"messages": [Message("user", asked, masked=True), answer]}
