"""Files and folders that survive a power cut, and errors that say in one line what could not be written.

A rename alone is not enough: after a power cut it may be there without the bytes it refers to. So always

    write the file, fsync it, fsync its folder, rename, fsync the parent folder

`replaced_folder` and `write_file` do all of it. `tests/campaigns/test_power_cut.py` replays what they do and
drops whatever was not yet on the disk.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

PARTIAL, OLD = ".partial", ".old"


@contextmanager
def saying_what(path: Path) -> Iterator[None]:
    """Turn an OSError into a ValueError that names the file, the reason and what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError | SafetensorError) -> ValueError:
    """The error for a file or folder that cannot be written."""
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    file = getattr(error, "filename", None)
    other = "" if file is None or Path(str(file)) == path else f" ({file})"
    return ValueError(
        f"{path} cannot be written: {reason}{other}. Make room there, set its permissions, or choose another "
        "output folder"
    )


def make_folder(folder: Path) -> None:
    """Create a folder and its parents, each with an entry that survives a power cut.

    Raises:
        ValueError: it cannot be created.
    """
    with saying_what(folder):
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for path in missing:
            sync_folder(path.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write the whole file or nothing; an older one is replaced.

    Raises:
        ValueError: it cannot be written.
    """
    part = path.with_name(f".{path.name}{PARTIAL}")
    with saying_what(path):
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Write a folder's entries to disk, so that a file or a rename in it survives a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Write all files of a folder, and the entries of all its folders, to disk."""
    for inner, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync_folder(Path(inner, name))  # fsync is the same call for both
        sync_folder(Path(inner))


@contextmanager
def replaced_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder, which becomes `target` on success and is deleted on an error.

    An older `target` is renamed first and deleted last, so that at every moment a complete folder exists. If
    the process is killed between the two renames, the older one comes back by `clean_folders`.

    Raises:
        ValueError: something cannot be written; then the older `target` is still there.
    """
    target = Path(target).absolute()
    make_folder(target.parent)
    with saying_what(target):
        clean_old(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=PARTIAL, dir=target.parent))
        old = work.with_suffix(OLD)
        try:
            yield work
            work.chmod(0o777 & ~_umask())
            sync_tree(work)
            if target.exists():
                os.rename(target, old)
            os.rename(work, target)
            sync_folder(target.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            if old.exists() and not target.exists():
                os.rename(old, target)
            raise


def clean_old(target: Path) -> None:
    """Bring back a folder that `replaced_folder` had moved away when it was killed."""
    for old in target.parent.glob(f".{target.name}.*{OLD}"):
        if not target.exists():
            os.rename(old, target)
            sync_folder(target.parent)


def clean_folders(parent: Path) -> list[str]:
    """Remove what killed processes have left of `replaced_folder` and `write_file`; returns the names.

    Only for a parent into which nobody else is writing.
    """
    left = [path for end in (OLD, PARTIAL) for path in sorted(parent.glob(f".*{end}"))]
    for path in left:
        if path.suffix == OLD:
            clean_old(parent / path.name[1:].removesuffix(OLD).rpartition(".")[0])
        remove(path)
    return [path.name for path in left]


def remove(path: Path) -> None:
    """Remove a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
