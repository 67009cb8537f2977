"""Re-encoded, shrunk and cropped copies of real photographs find the photograph that they come from."""

from pathlib import Path

import skimage
import torch
from PIL import Image

from torchtune_qwenvl.vision import VisionPipeline
from torchtune_qwenvl.vision.index import ImageIndex

PHOTOS = [
    "astronaut",
    "brick",
    "camera",
    "chelsea",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
]
PHOTOS += ["ihc", "moon", "motorcycle_left", "retina", "rocket"]
CROPS = {"centre": (0.1, 0.1, 0.9, 0.9), "left": (0, 0, 0.8, 1), "corner": (0.3, 0.3, 1, 1)}


def copies(photo: Image.Image) -> dict[str, tuple[Image.Image, int]]:
    """Name -> image and JPEG quality."""
    width, height = photo.size
    found = {"fair": (photo, 30), "poor": (photo, 10), "half": (photo.resize((width // 2, height // 2)), 85)}
    for name, (left, top, right, bottom) in CROPS.items():
        box = (int(left * width), int(top * height), int(right * width), int(bottom * height))
        found[name] = (photo.crop(box), 85)
    return found


def test_copies_find_their_photograph(tmp_path: Path) -> None:
    """Random weights will do: they keep colours and textures, and nothing else is needed here."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "copies").mkdir()
    for name in PHOTOS:
        (file,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        photo = Image.open(file).convert("RGB")
        photo.thumbnail((640, 640))
        photo.save(tmp_path / f"photos/{name}.png")
        for kind, (image, quality) in copies(photo).items():
            image.save(tmp_path / f"copies/{name}-{kind}.jpg", quality=quality)
    torch.manual_seed(0)
    pipeline = VisionPipeline.from_builder("vit_small", depth=4, embed_dim=128, num_heads=4, img_size=112)
    index = ImageIndex.build(tmp_path / "photos", pipeline, tmp_path / "index", pool="max", workers=0)
    queries = sorted((tmp_path / "copies").iterdir())
    hits = index.search(queries, pipeline, k=1)
    right = [
        Path(hit.name).stem == query.stem.rpartition("-")[0]
        for query, (hit,) in zip(queries, hits, strict=True)
    ]
    assert len(right) == 84 and sum(right) / 84 >= 0.98


def test_workers_and_batches_change_no_order_and_no_byte_of_a_resume(tmp_path: Path) -> None:
    """With an encoder: names and order stay, vectors to rounding; a resume is the same to the byte."""
    for number in range(9):
        (tmp_path / "photos").mkdir(exist_ok=True)
        noise = torch.randint(0, 256, (30 + 8 * number, 60, 3), dtype=torch.uint8).numpy()
        Image.fromarray(noise).save(tmp_path / f"photos/{number}.png")
    pipeline = VisionPipeline.from_builder("vit_small", depth=2, embed_dim=32, num_heads=2)
    built = {
        name: ImageIndex.build(tmp_path / "photos", pipeline, tmp_path / name, part_size=4, **reading)
        for name, reading in {"one": {"workers": 0}, "two": {"workers": 2, "batch_tokens": 40}}.items()
    }
    one, two = ([part for _, part in index.store.parts()] for index in built.values())
    assert built["one"].names == built["two"].names == [f"{number}.png" for number in range(9)]
    for a, b in zip(one, two, strict=True):
        assert abs(a - b).max() <= 1e-5 * abs(a).max()
    first = [tmp_path / f"photos/{number}.png" for number in range(4)]  # a part, then a stop
    ImageIndex.build(first, pipeline, tmp_path / "resumed", part_size=4, workers=0)
    ImageIndex.build(tmp_path / "photos", pipeline, tmp_path / "resumed", part_size=4, workers=0)
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "resumed" / file.name).read_bytes() == file.read_bytes()
