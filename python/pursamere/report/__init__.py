"""Turns the result of an evaluation into Markdown, HTML, plots, image grids and a table for the terminal."""
