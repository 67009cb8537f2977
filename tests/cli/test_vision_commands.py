"""`embed`, `search` and `probe` from the command line to their files."""

from pathlib import Path

import pytest
import tiny
from PIL import Image

from torchtune_qwenvl.cli.main import main

READ = ["--workers", "0", "--max-pixels", "12544"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of six pictures, and a broken file."""
    folder = tmp_path_factory.mktemp("data") / "photos"
    for number in range(12):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        tiny.photo(60 + number, 90, seed=number).save(folder / "ab"[number % 2] / f"{number}.png")
    (folder / "broken.jpg").write_bytes(b"")
    return folder


@pytest.fixture(scope="module")
def index(photos: Path, tiny_folder: Path) -> Path:
    out = photos.parent / "index"
    main(["embed", str(photos), "--encoder", str(tiny_folder), "--out", str(out), *READ])
    return out


def refused(*argv: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(argv)
    return str(stop.value.code)


def test_embed_and_search(
    index: Path, photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["embed", str(photos), "--encoder", str(tiny_folder), "--out", str(index), *READ]
    main([*argv, "--clip-retrieval", str(tmp_path / "clip")])  # again: nothing is left to do
    printed = capsys.readouterr().out
    assert "12 images, 1 left out, 64 numbers per image" in printed and "broken.jpg: 0 bytes" in printed
    assert (tmp_path / "clip/img_emb/img_emb_0.npy").is_file()
    sheet = tmp_path / "hits.png"
    main(["search", str(index), str(photos / "b/7.png"), "-k", "3", "--sheet", str(sheet)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1.0000  b/7.png" and len(lines) == 4 and lines[-1] == f"sheet: {sheet}"
    with Image.open(sheet) as drawn:
        assert drawn.width > 900 and len(drawn.convert("RGB").getcolors(2**24)) > 1000


def test_a_moved_encoder_is_named(
    index: Path, photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    argv = ["search", str(index), str(photos / "b/7.png"), "-k", "1"]
    main([*argv, "--encoder", str(tiny_folder)])
    assert "b/7.png" in capsys.readouterr().out
    assert "moved: no such folder" in refused(*argv, "--encoder", str(tmp_path / "moved"))


def test_probe(photos: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    plot = tmp_path / "layers.png"
    argv = ["probe", str(photos), "--encoder", str(tiny_folder), *READ, "-k", "1", "--plot", str(plot)]
    main([*argv, "--layers", "0,-1", "--pools", "mean"])
    printed = capsys.readouterr().out
    assert "2 classes, 12 images, 4 of them held out" in printed and "1-nn" in printed
    assert plot.is_file() and "best" in printed


def test_mistakes_get_an_answer(index: Path, photos: Path, tiny_folder: Path, tmp_path: Path) -> None:
    encoder = ["--encoder", str(tiny_folder)]
    assert "there is no text tower" in refused("search", str(index), "a red car on a beach")
    assert "no meta.json there" in refused("search", str(photos), str(photos / "b/7.png"))
    (tmp_path / "empty").mkdir()
    assert "no images in" in refused("embed", str(tmp_path / "empty"), *encoder, "--out", str(tmp_path / "o"))
    again = ["embed", str(photos), *encoder, "--out", str(index), "--workers", "0"]
    assert "made by another encoder, or with other image settings" in refused(*again)
    assert "'max'" in refused(*again, "--pool", "max")
    assert "this encoder has no cls token" in refused(
        "embed", str(photos), *encoder, "--pool", "cls", "--out", str(tmp_path / "cls")
    )
    assert "--layers: expected all, or indexes" in refused(
        "probe", str(photos), *encoder, "--layers", "last", "--workers", "0"
    )
