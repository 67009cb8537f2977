"""Frame k of a file is the k-th frame of decoding from the start, whichever way it is reached."""

import sys
from types import SimpleNamespace

import av
import numpy as np
import pytest
import tiny
import torch
import videos
from PIL import Image

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.videos import frame_decoder
from torchtune_qwenvl.transforms.videos.container import Deadline, Packets, read_packets
from torchtune_qwenvl.transforms.videos.open_video import open_video


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one file of each kind, each written when first needed."""
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(params=videos.KINDS)
def path(folder, request):
    file = folder / request.param
    return file if file.is_file() else videos.encode(file)


def arrays(frames) -> list[np.ndarray]:
    return [frame.permute(1, 2, 0).numpy() for frame in frames]


def assert_frames(source, expected: list[np.ndarray], indices) -> None:
    found = arrays(open_video(source).frames(list(indices)))
    assert len(found) == len(indices)
    for index, frame in zip(indices, found, strict=True):
        assert np.array_equal(frame, expected[index]), index


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """Records every time that all frames are decoded and counted."""
    calls, original = [], frame_decoder._by_counting
    monkeypatch.setattr(frame_decoder, "_by_counting", lambda *a, **k: calls.append(1) or original(*a, **k))
    return calls


def test_header(path):
    opened = open_video(path)
    assert (opened.n_frames, opened.fps, opened.height, opened.width) == (
        40,
        pytest.approx(30, rel=0.15),
        48,
        64,
    )
    assert opened.seconds == pytest.approx(opened.n_frames / opened.fps)
    assert not opened.chosen


def test_any_frames_as_decoded_from_the_start(path, counted):
    expected = videos.decode_all(path)
    rng = np.random.default_rng(0)
    for indices in (range(40), range(0, 40, 7), [39], [0], [13, 13, 25, 25, 25], [11, 12], [0, 35]):
        assert_frames(path, expected, indices)
    for _ in range(10):
        assert_frames(path, expected, np.flatnonzero(rng.random(40) < 0.15).tolist() or [5])
    assert bool(counted) == (path.suffix in (".avi", ".gif"))


def test_bytes_are_the_file(path):
    for one, other in zip(
        open_video(path).frames([3, 20]), open_video(path.read_bytes()).frames([3, 20]), strict=True
    ):
        assert torch.equal(one, other)
        assert one.stride() == other.stride() == (1, 3 * 64, 3)


def test_packets_that_are_not_needed_are_not_decoded(folder):
    options = {"preset": "ultrafast", "g": "12", "bf": "3", "sc_threshold": "0"}
    path = videos.encode(folder / "long.mp4", 120, codec="libx264", options=options)
    packets = read_packets(path, 120, Deadline(60))
    assert packets.timed and sum(packets.keys) == 10
    runs = frame_decoder.plan_runs(packets, [0, 60, 62, 117])
    assert [run.first for run in runs] == [0, 60, 108]
    assert [len(run.times) for run in runs] == [1, 2, 1]
    assert sum(run.last - run.first + 1 for run in runs) < 20


def test_seeks_are_exact(tmp_path, counted, monkeypatch):
    seeks, seek = [], frame_decoder._Reader._seek
    monkeypatch.setattr(frame_decoder._Reader, "_seek", lambda self, at: seeks.append(at) or seek(self, at))
    options = {"preset": "ultrafast", "g": "20", "bf": "3"}
    for name, uneven in (("even.mp4", False), ("uneven.mkv", True)):
        path = videos.encode(tmp_path / name, 420, 32, 48, codec="libx264", options=options, uneven=uneven)
        expected = videos.decode_all(path)
        seeks.clear()
        assert_frames(path, expected, [2, 390, 395, 419])
        assert_frames(path, expected, [401])
        assert len(seeks) == 2
    assert not counted


def test_uneven_frames_have_their_own_number_and_the_average_rate(tmp_path):
    path = videos.encode(tmp_path / "h264.mp4", 30, uneven=True)
    with av.open(str(path)) as container:
        rate = container.streams.video[0].average_rate
    opened = open_video(path)
    assert opened.n_frames == 30 and opened.fps == float(rate) != 30
    assert_frames(path, videos.decode_all(path), range(0, 30, 4))


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_rotation_is_applied(tmp_path, rotation):
    path = videos.encode(tmp_path / "h264.mp4", 10, rotation=rotation)
    expected = [np.rot90(frame, rotation // 90) for frame in videos.decode_all(path)]
    opened = open_video(path)
    assert (opened.height, opened.width) == expected[0].shape[:2]
    assert_frames(path, expected, [0, 7])


def test_frames_that_an_edit_list_cuts_away_do_not_count(tmp_path):
    path = videos.encode(
        tmp_path / "h264.mp4", 40, start=-10, container_options={"avoid_negative_ts": "disabled"}
    )
    expected = videos.decode_all(path)
    assert open_video(path).n_frames == len(expected) == 30
    assert_frames(path, expected, range(0, 30, 4))


def test_alpha_is_white(tmp_path):
    from PIL import Image

    pictures = [Image.new("RGBA", (20, 16), (200, 0, 0, 255)) for _ in range(3)]
    for number, picture in enumerate(pictures):
        picture.paste((0, 0, 0, 0), (0, 0, 5 + number, 16))
    pictures[0].save(tmp_path / "a.gif", save_all=True, append_images=pictures[1:], disposal=2, duration=100)
    first, *_, last = arrays(open_video(tmp_path / "a.gif").frames([0, 1, 2]))
    assert (first[:, :5] == 255).all() and (first[:, 5:] == (200, 0, 0)).all()
    assert (last[:, :7] == 255).all() and (last[:, 7:] == (200, 0, 0)).all()


def test_pictures_that_vp8_never_shows_do_not_count(tmp_path):
    source = videos.encode(tmp_path / "vp8.webm", 20)
    with av.open(str(source)) as old, av.open(str(tmp_path / "hidden.webm"), "w") as new:
        stream = new.add_stream_from_template(old.streams.video[0])
        for packet in old.demux(video=0):
            if packet.size:
                data = bytearray(bytes(packet))
                data[0] &= 0xEF if packet.pts == 233 else 0xFF
                changed = av.Packet(bytes(data))
                changed.pts, changed.dts, changed.time_base = packet.pts, packet.dts, packet.time_base
                changed.is_keyframe, changed.stream = packet.is_keyframe, stream
                new.mux(changed)
    expected = videos.decode_all(tmp_path / "hidden.webm")
    assert open_video(tmp_path / "hidden.webm").n_frames == len(expected) == 19
    assert_frames(tmp_path / "hidden.webm", expected, range(0, 19, 3))


CUT = {
    "h264.mp4": "cannot be decoded: Invalid data",
    "faststart.mp4": "cut off or damaged after frame|says 40 frames",
    "mpeg4.avi": "cut off or damaged after frame|says 40 frames",
    "vp9.webm": "its header says [0-9]* bytes, but it has [0-9]*: cut off",
    "h264.mkv": "its header says [0-9]* bytes, but it has [0-9]*: cut off",
    "animation.gif": "a GIF without an end: cut off",
}


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize("as_bytes", [False, True])
def test_files_cut_off(tmp_path, name, as_bytes):
    codec, options = videos.KINDS.get(name, videos.KINDS["h264.mp4"])
    path = videos.encode(
        tmp_path / name,
        codec=codec,
        options=options,
        container_options={"movflags": "faststart"} if name == "faststart.mp4" else {},
    )
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 4 // 5])
    with pytest.raises(BadSample, match=f"{'given as bytes' if as_bytes else name}: ({CUT[name]})") as error:
        list(open_video(path.read_bytes() if as_bytes else path).frames([0, 1]))
    assert str(error.value).endswith("(repair or remove the file)")


def test_what_is_no_video(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("no video")
    grey, white = (Image.new("L", (32, 32), shade) for shade in (128, 255))
    grey.save(tmp_path / "still.mp4", "JPEG")
    grey.save(tmp_path / "moving.webp", save_all=True, append_images=[white])
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:1,\nh264.mp4\n#EXT-X-ENDLIST\n")
    videos.encode(tmp_path / "h264.mp4", 4)
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.rate = 16000
        container.mux([*stream.encode(sound), *stream.encode()])
    for name, message in [
        ("gone.mp4", "no such video file"),
        ("empty.mp4", "0 bytes, expected a video"),
        ("still.mp4", r"an image \(JPEG\), expected a video .*give it as an image"),
        ("moving.webp", r"an image \(WEBP\), expected a video .*list of its frames"),
        ("text.mp4", "cannot be decoded: Invalid data"),
        ("list.m3u8", "cannot be decoded: Invalid data"),
        ("sound.mp4", "expected a video stream in it, found audio"),
    ]:
        with pytest.raises(BadSample, match=rf"message 3, .*{name}: {message}"):
            open_video(tmp_path / name, where="message 3")
    with pytest.raises(BadSample, match=r"h264\.mp4: 48 x 64 pixels, more than max_frame_pixels = 3000"):
        open_video(tmp_path / "h264.mp4", max_frame_pixels=3000)
    with pytest.raises(BadSample, match="reading it takes longer than decode_timeout = 0 seconds"):
        open_video(tmp_path / "h264.mp4", decode_timeout=0)
    with pytest.raises(BadSample, match="expected source_fps to be a positive number, at most 10,000, got 0"):
        open_video(tmp_path / "h264.mp4", source_fps=0)


def test_damage_in_the_middle_is_found(tmp_path):
    path = videos.encode(tmp_path / "mpeg4.avi", 40, 96, 128)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 300] = bytes(300)
    path.write_bytes(bytes(data))
    with pytest.raises(BadSample, match=r"mpeg4\.avi: (a frame at|its header says 40 frames|cannot be de)"):
        list(open_video(path).frames(range(40)))


def test_a_wrong_list_of_packets_is_noticed(folder, counted, monkeypatch):
    """Packets wrongly marked as key frames (a muxer's mistake) cost time but give the same frames."""
    path = videos.encode(folder / "h264.mp4", 60)
    original = read_packets(path, 60, Deadline(60))
    wrong = Packets(original.times, [True] * 60, 60, True)
    monkeypatch.setattr("torchtune_qwenvl.transforms.videos.open_video.read_packets", lambda *a: wrong)
    assert_frames(path, videos.decode_all(path), [1, 17, 31])
    assert counted


def test_a_seek_that_goes_too_far_is_noticed():
    packets = Packets(times=[0, 10, 20], keys=[True] * 3, shown=3, timed=True)
    late = SimpleNamespace(pts=20, size=1)
    container = SimpleNamespace(seek=lambda *a, **k: None, demux=lambda stream: iter([late]))
    with pytest.raises(frame_decoder._LostTrack):
        frame_decoder._Reader(container, None, packets)._seek(1)


def test_without_pyav(tmp_path, monkeypatch):
    path = videos.encode(tmp_path / "h264.mp4", 4)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ValueError, match=r"pip install 'torchtune_qwenvl\[video\]'"):
        open_video(path)
    assert open_video([tiny.photo(20, 20)]).n_frames == 1
