"""Images and videos inside the data as text: ``data:image/png;base64,...`` and plain base64."""

import base64
import re
from urllib.parse import unquote

from torchtune_qwenvl.transforms.errors import BadSample

# RFC 2397: data:[type/subtype][;name=value ...][;base64],content
_HEAD = re.compile(r"data:(?P<kind>[^;,]*)(?P<rest>(?:;[^;,]*)*),", re.IGNORECASE)
_SPACE = re.compile(r"\s+")
_KINDS = {"image": ("image/",), "video": ("video/", "image/gif")}
_URL_SAFE = str.maketrans("-_", "+/")


def read_data_url(url: str, max_bytes: int, kind: str = "image") -> bytes:
    """The content of a ``data:`` URL.

    Args:
        url: ``data:image/png;base64,iVBORw0...``; the type may be left out.
        max_bytes: largest content.
        kind: "image" or "video".

    Raises:
        BadSample: not of this form, another kind of content, or refused by `read_base64`.
    """
    head = _HEAD.match(url[:200])
    if head is None or not head["rest"].lower().endswith(";base64"):
        raise BadSample(
            f"expected data:{kind}/...;base64,..., got {url[:30]}...",
            fix=f"encode the {kind} with base64, or write it to a file",
        )
    came = head["kind"].lower()
    if came and not came.startswith((*_KINDS[kind], "application/octet-stream")):
        raise BadSample(
            f"expected data:{kind}/..., got data:{came}", fix=f"name the {kind}, or remove the part"
        )
    content = url[head.end() :]
    return read_base64(unquote(content) if "%" in content else content, max_bytes)


def read_base64(text: str, max_bytes: int) -> bytes:
    """Decode base64, in the usual alphabet or the one for URLs; line breaks are ignored.

    Raises:
        BadSample: empty, larger than `max_bytes`, cut short, or with characters that are not base64.
    """
    text = _SPACE.sub("", text)
    if len(text) // 4 * 3 > max_bytes + 2:
        raise BadSample(
            f"base64 of {len(text) // 4 * 3} bytes, larger than the limit of {max_bytes} bytes "
            "(url_max_bytes)",
            fix="make it smaller, write it to a file, or raise the limit",
        )
    try:
        content = base64.b64decode(text.translate(_URL_SAFE), validate=True)
    except ValueError as error:  # binascii.Error, or letters outside ASCII
        raise BadSample(
            f"expected base64, got {len(text)} characters {text[:20]!r}...: {error}",
            fix="encode the file's bytes again; is the text cut short, or a path?",
        ) from error
    if not content:
        raise BadSample("expected base64, got nothing", fix="name the file, or remove the part")
    return content
