"""Pictures of a validation: the confusion matrix, and images with what the model made of them."""

from collections.abc import Sequence
from pathlib import Path

from torchtune_qwenvl.data.labelled import LabelledImages
from torchtune_qwenvl.pictures.classes import Prediction, draw_confusion, draw_predictions
from torchtune_qwenvl.training.watch.classification import Classified, Guess


def show_classes(result: Classified, images: LabelledImages, output_dir: Path, count: int) -> None:
    """Write `confusion.png` and `predictions.png`.

    Args:
        result: of the validation set.
        images: the validation set.
        output_dir: of the run.
        count: images in predictions.png, from the whole set, and most mistakes below them, the surest first;
            0 writes neither.
    """
    if not count:
        return
    title = f"{result.top1:.1%} of {int(result.confusion.sum())} images right"
    draw_confusion(result.confusion.tolist(), images.class_names, output_dir / "confusion.png", title)
    some = spread(sorted(result.guesses, key=lambda guess: guess.number), count)
    wrong = sorted((g for g in result.guesses if not g.right), key=lambda guess: -guess.probability)[:count]
    shown, mistakes = ([_shown(guess, images) for guess in part] for part in (some, wrong))
    title = f"{title}; some of them, and the surest mistakes"
    draw_predictions(shown, mistakes, output_dir / "predictions.png", title)


def spread(guesses: Sequence[Guess], count: int) -> list[Guess]:
    """At most so many of them at equal distances: validation sets are often sorted by class."""
    count = min(count, len(guesses))
    return [guesses[place * len(guesses) // count] for place in range(count)]


def _shown(guess: Guess, images: LabelledImages) -> Prediction:
    pixels = images.image(guess.number).permute(1, 2, 0).numpy()
    picture = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    expected, given = (images.class_names[number] for number in (guess.label, guess.given))
    return Prediction(picture, expected, given, guess.probability)
