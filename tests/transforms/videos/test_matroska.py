"""Complete Matroska and WebM files of any layout are accepted, files with lost packets are refused."""

import pytest
import videos
from hypothesis import given, settings
from hypothesis import strategies as st

from torchtune_qwenvl.transforms.errors import BadSample
from torchtune_qwenvl.transforms.videos.container import Deadline, read_packets
from torchtune_qwenvl.transforms.videos.matroska import check_elements
from torchtune_qwenvl.transforms.videos.open_video import open_video

NAMES = ("vp8.webm", "vp9.webm", "h264.mkv")
LAYOUTS = {
    "as muxed": {},
    "many clusters": {"cluster_time_limit": "100"},
    "recorded live": {"live": "1"},
    "index in front": {"reserve_index_space": "2000"},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    options = {"cluster_time_limit": "300"}
    return {name: videos.encode(folder / name, container_options=options).read_bytes() for name in NAMES}


@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", NAMES)
def test_whole_files_of_any_layout(tmp_path, name, layout, uneven):
    path = videos.encode(tmp_path / name, uneven=uneven, container_options=LAYOUTS[layout])
    assert open_video(path).n_frames == open_video(path.read_bytes()).n_frames == 40


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(NAMES), st.floats(0, 1, exclude_max=True), st.integers(1, 3000))
def test_no_packet_is_lost_to_zeros_unnoticed(whole, name, where, n):
    """A block that was never written contains zeros."""
    data = bytearray(whole[name])
    at = int(where * len(data))
    data[at : at + n] = bytes(len(data[at : at + n]))
    try:
        packets = read_packets(bytes(data), None, Deadline(60))
    except BadSample:
        return
    assert len(packets.times) == 40


@settings(deadline=None)
@given(st.sampled_from(NAMES), st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_is_refused(whole, name, where):
    data = whole[name][: int(where * len(whole[name]))]
    with pytest.raises(BadSample):
        read_packets(data, None, Deadline(60))


def element(name: str, content: bytes, *, length: str = "") -> bytes:
    return bytes.fromhex(name) + (bytes.fromhex(length) or bytes([0x80 | len(content)])) + content


TRACKS = element("1654AE6B", element("AE", element("D7", b"\x01") + element("83", b"\x01")))
BLOCK = element("A3", b"\x81\x00\x00\x80data")
GROUP = element("A0", element("A1", b"\x81\x00\x01\x00data") + element("9B", b"\x21"))
OPEN = "01FFFFFFFFFFFFFF"


def check(*clusters: bytes, length: str = "", after: bytes = b"") -> None:
    segment = element("18538067", b"".join((TRACKS, *clusters)), length=length)
    check_elements(element("1A45DFA3", b"\x42\x86\x81\x01") + segment + after, "repair it")


def test_elements_tile():
    cluster = element("1F43B675", element("E7", b"\0") + BLOCK + GROUP)
    void = element("EC", bytes(9))
    check(cluster, void, cluster, after=b"what follows the segment is not read")
    check(cluster, element("1F43B675", BLOCK + GROUP, length=OPEN), cluster, length=OPEN)
    for cluster, message in [
        (element("1F43B675", BLOCK + b"\0\0" + BLOCK), "no valid element there"),
        (element("1F43B675", BLOCK + GROUP[:-1]), "no valid element there"),
        (element("1F43B675", element("A3", b"\x82\0\0\0data")), "a packet of an unknown track"),
        (
            element("1F43B675", element("A0", element("A1", b"\x00\0\0\0data"))),
            "a packet of an unknown track",
        ),
        (element("1F43B675", element("A3", b"\x81\0\0\0data", length=OPEN)), "no valid element there"),
    ]:
        with pytest.raises(BadSample, match=f"damaged at byte [0-9]+ of [0-9]+: {message}"):
            check(cluster, void)
    with pytest.raises(BadSample, match=r"its header says 86 bytes, but it has [0-9]+: cut off"):
        check(GROUP, length="C8")


def test_titles_in_other_encodings(tmp_path):
    path = videos.encode(tmp_path / "h264.mkv", 4)
    data = path.read_bytes()
    assert b"Lavf" in data
    path.write_bytes(data.replace(b"Lavf", b"Caf\xe9"))
    assert open_video(path).n_frames == 4
