"""Records by number: what every source provides, several sources as one, and a slice of one."""

import mimetypes
import zlib
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torchtune_qwenvl.data.joined import Joined


class Records(Protocol):
    """Records by number, each with the place it comes from."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any:
        """The record, parsed; raises :class:`BadSample` if it cannot be parsed."""

    def where(self, index: int) -> str:
        """File and number of a record, for messages."""

    def folder(self, index: int) -> Path | None:
        """Folder that relative image paths start from; None if the record comes from no file."""

    def fingerprint(self) -> object:
        """Something that changes when the records may have changed."""


class JoinedRecords:
    """Several sources one after the other; each keeps its own names and numbers."""

    def __init__(self, sources: Sequence[Records]) -> None:
        self._sources = list(sources)
        self._places = Joined(map(len, self._sources))

    def _find(self, index: int) -> tuple[Records, int]:
        place = self._places.find(index)
        return self._sources[place.part], place.number

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Any:
        source, inner = self._find(index)
        return source[inner]

    def where(self, index: int) -> str:
        source, inner = self._find(index)
        return source.where(inner)

    def folder(self, index: int) -> Path | None:
        source, inner = self._find(index)
        return source.folder(inner)

    def fingerprint(self) -> object:
        return [source.fingerprint() for source in self._sources]


class FolderMetadata:
    """Records of an image folder's ``metadata`` file, as `datasets` reads them.

    ``file_name`` and ``file_names`` are the record's image or images; a file with the name of a video is one.

    Args:
        source: records of the file.
    """

    def __init__(self, source: Records) -> None:
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Any:
        record = self._source[index]
        if not isinstance(record, dict):
            return record
        for theirs, ours in (("file_name", ("image", "video")), ("file_names", ("images", "videos"))):
            named = record.get(theirs)
            column = ours[_names_video(named)]
            if named is not None and column not in record:
                record[column] = record.pop(theirs)
        return record

    def where(self, index: int) -> str:
        return self._source.where(index)

    def folder(self, index: int) -> Path | None:
        return self._source.folder(index)

    def fingerprint(self) -> object:
        return "folder", self._source.fingerprint()


def _names_video(named: Any) -> bool:
    names = named if isinstance(named, list) else [named]
    kinds = [mimetypes.guess_type(name)[0] or "" for name in names if isinstance(name, str)]
    return bool(kinds) and all(kind.startswith("video/") for kind in kinds)


class SlicedRecords:
    """Some records of a source, given by their numbers in it."""

    def __init__(self, source: Records, indices: Sequence[int]) -> None:
        self._source, self._indices = source, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Any:
        return self._source[self._indices[index]]

    def where(self, index: int) -> str:
        return self._source.where(self._indices[index])

    def folder(self, index: int) -> Path | None:
        return self._source.folder(self._indices[index])

    def fingerprint(self) -> object:
        return self._source.fingerprint(), zlib.crc32(array("q", self._indices).tobytes())
