"""The text that the demo model is trained and tested on, all of it written by these modules."""

from training.corpus.dialogue import Check, Dialogue, Split, Turn
from training.corpus.mixture import TEST_NAMES, draw_test, draw_training

__all__ = ["TEST_NAMES", "Check", "Dialogue", "Split", "Turn", "draw_test", "draw_training"]
