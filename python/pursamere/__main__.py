"""``python -m pursamere`` is the command ``pursamere``."""

from pursamere.cli import run

run()
