"""Numbers with their nouns in messages."""


def counted(count: float, noun: str, plural: str = "") -> str:
    """A whole number and its noun, in the plural unless it is one: "1 sample", "1,200 samples"."""
    return f"{count:,.0f} {noun if count == 1 else plural or f'{noun}s'}"
