"""``python -m pursamere.cli`` is the command ``pursamere``."""

from pursamere.cli import run

run()
