"""What a transform raises when a sample cannot be used.

Both are ValueErrors with one finished sentence as their only argument, so that they travel unchanged out of
worker processes; whoever knows more (the dataset knows the sample's number) raises a new one with `at`.
"""

from __future__ import annotations


class BadSample(ValueError):
    """A sample that cannot be turned into a training example.

    Args:
        what: what was expected and what came.
        where: the file, message or part at fault, put in front.
        fix: what the user can do, put behind.

    Attributes:
        what: as given, without place and advice: errors of one kind are alike in it. It stays in its process.
    """

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        front = f"{where}: " if where else ""
        behind = f" ({fix})" if fix else ""
        super().__init__(f"{front}{what}{behind}")
        self.what = what

    def at(self, where: str) -> BadSample:
        """The same error, of the same class, with `where` in front."""
        located = type(self)(str(self), where=where)
        located.what = self.what
        return located


class SampleTooLong(BadSample):
    """A sample that does not fit into `max_seq_len`, not even after what the policy allows to leave out."""
