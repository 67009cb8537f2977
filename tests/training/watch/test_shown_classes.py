"""Which images of a validation set are drawn."""

from torchtune_qwenvl.training.watch.classification import Guess
from torchtune_qwenvl.training.watch.shown_classes import spread


def test_a_set_that_is_sorted_by_class_shows_all_classes() -> None:
    guesses = [Guess(number, number // 10, 0, 0.5) for number in range(100)]
    assert [guess.label for guess in spread(guesses, 10)] == list(range(10))
    assert [guess.number for guess in spread(guesses, 3)] == [0, 33, 66]
    assert spread(guesses[:2], 12) == guesses[:2] and spread([], 12) == []
