"""What becomes of the columns that no style reads, and of keys of turns and parts that nobody reads.

    named after media, or holds a file          image_path, img, file_name, audio_url      an error
    conversation                                input, history, choices, rejected, objects  an error
    anything else                               id, source, image_size                      a note

Nothing that a person wrote is left out without a word: an error says how to have the column read or ignored,
and notes are shown at the start of a run, by `tune-qwenvl check` and when a new one turns up. Names are split
into words, so `imagePath`, `Image_0` and `image-url` are alike.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image

from torchtune_qwenvl.data.records.text import is_blank, leaves
from torchtune_qwenvl.transforms.errors import BadSample

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_MEDIA = re.compile(
    r"(image|img|video|audio|photo|picture|pic)s?(file|path|url|name|uri|data|bytes|base64|list)?s?"
    r"|(sound|wav|clip|frame|screenshot|thumbnail)s?|media"
)
_FILE = re.compile(r"files?(names?|paths?)?")
_SOUND = re.compile(r"(audio|sound|wav)s?(file|path|url)?s?")
_CONVERSATION = re.compile(
    r"(input|history|context|choice|option|response|answer|question|prompt|instruction|completion|output"
    r"|conversation|message|dialog|dialogue|turn|system|reasoning|thinking|thought|rationale|explanation"
    r"|solution|hint|passage|document|caption|text|reply|content|value|utterance|object|bbox|box|suffix|prefix"
    r"|function|tool|call|target|refusal)(e?s)?|query|queries"
)
_VIDEO = re.compile(r"(video|clip).*")
_PREFERENCE = re.compile(r"chosen|rejected|preferred|kto")
# The last word of a name that describes something instead of holding it: image_id, question_type.
_ABOUT = re.compile(
    r"ids?|idx|index|uu?id|types?|kind|sizes?|widths?|heights?|shapes?|dims?|[whn]|counts?|num|numbers?|total"
    r"|duration|fps|format|mode|source|license|hash|md5|sha\d*|date|time|timestamp|len(gth)?s?|lang(uage)?|score"
)
_MEDIA_NAME = re.compile(
    r"\.(jpe?g|png|gif|webp|bmp|tiff?|mp4|m4v|mov|avi|mkv|webm|wav|mp3|flac)([?#].*)?$", re.IGNORECASE
)
_INLINE = re.compile(r"data:(image|video|audio)/", re.IGNORECASE)
_MOST_LEAVES = 1000  # values inside one column that are looked at

IGNORE = "name it in dataset.ignore_columns"


class Leftovers:
    """Collects what is not read of one record.

    Args:
        is_file: whether a text names a file that exists.
        ignored: names of columns and keys that may be ignored; ``*`` stands for any characters.

    Attributes:
        notes: what was found that is no error, without the places.
    """

    def __init__(
        self, is_file: Callable[[str], bool] = lambda text: False, ignored: Iterable[str] = ()
    ) -> None:
        self._is_file, self._ignored = is_file, tuple(ignored)
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def is_ignored(self, name: str) -> bool:
        """Whether the user allows a column to be ignored."""
        return any(fnmatchcase(name, pattern) for pattern in self._ignored)

    def check(
        self, entries: Mapping[Any, Any], read: Iterable[str], what: str, where: str = "", media: bool = True
    ) -> None:
        """Note the entries that are not among `read`.

        Args:
            entries: a record, a turn or a part.
            read: the names that are read.
            what: "column", or "key of a turn".
            where: of the entries, for messages.
            media: whether the record has images or videos that are read. Without any, the URL of an image is
                taken for what the question is about.

        Raises:
            BadSample: one that must not be ignored.
        """
        for name, value in entries.items():
            if name in read or is_blank(value) or self.is_ignored(str(name)):
                continue
            if reason := self._why_needed(str(name), value, media):
                raise BadSample(f"{what} {name!r:.60} is not read, and {reason}", where=where)
            self.note(f"{what} {name!r:.60} is not read")

    def _why_needed(self, name: str, value: Any, media: bool) -> str | None:
        """What a name or value says that must not be ignored, and what to do; None if nothing."""
        says = _what_it_says(name)
        if says.sound and not _is_figure(value):
            return f"holds sound, which these models do not hear: remove it, or {IGNORE}"
        if held := self._media_in(value, media) or _named_media(says, value):
            column = "video" if says.video else "image"
            return f"{held}: read it by dataset.column_map.{column}={name}, or {IGNORE}"
        if says.preference or (name == "label" and isinstance(value, bool)):
            return f"belongs to preference training, which is not done here: {IGNORE} to train on the answer"
        if (says.conversation and not _is_figure(value)) or _has_turns(value):
            return f"looks like a part of the conversation: read it by dataset.column_map, or {IGNORE}"
        return None

    def _media_in(self, value: Any, media: bool) -> str | None:
        for leaf in islice(leaves(value), _MOST_LEAVES):
            if isinstance(leaf, (bytes, Image.Image, np.ndarray, torch.Tensor)):
                return "holds data of a file"
            if not isinstance(leaf, str) or len(leaf) > 4096:
                continue
            if _INLINE.match(leaf):
                return "holds data of a file"
            if "\n" not in leaf and self._is_file(leaf):
                return f"holds a file that exists, {leaf:.80}"
            if not media and "://" in leaf and " " not in leaf and _MEDIA_NAME.search(leaf):
                return f"holds the address of a file, {leaf:.80}"
        return None


@dataclass(frozen=True)
class _Name:
    """What the words of a name say about what it holds: `only_media` if they say nothing else."""

    sound: bool
    media: bool
    only_media: bool
    video: bool
    preference: bool
    conversation: bool


@lru_cache(maxsize=1024)
def _what_it_says(name: str) -> _Name:
    words = [word.lower() for word in _WORD.findall(name)]
    holds = bool(words) and not _ABOUT.fullmatch(words[-1])

    def some(known: re.Pattern[str]) -> bool:
        return any(known.fullmatch(word) for word in words)

    files = some(_FILE) and all(_FILE.fullmatch(word) or word in ("name", "path") for word in words)
    return _Name(
        sound=holds and some(_SOUND),
        media=holds and (some(_MEDIA) or files),
        only_media=holds and all(_MEDIA.fullmatch(word) or word.isdigit() for word in words),
        video=some(_VIDEO),
        preference=some(_PREFERENCE),
        conversation=holds and some(_CONVERSATION),
    )


def _named_media(says: _Name, value: Any) -> str | None:
    """Whether a name says that it holds media; one that says more than that may also be a figure."""
    if isinstance(value, bool) or not (says.only_media or (says.media and not _is_figure(value))):
        return None
    return "names media"


def _is_figure(value: Any) -> bool:
    """Whether a value consists of numbers and truth values only."""
    return all(isinstance(leaf, (int, float, np.number)) for leaf in leaves(value))


def _has_turns(value: Any) -> bool:
    turns = value if isinstance(value, (list, tuple)) else ()
    return any(isinstance(turn, Mapping) and ("role" in turn or "from" in turn) for turn in turns)
