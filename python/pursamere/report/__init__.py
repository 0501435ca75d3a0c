"""From the result of an evaluation to Markdown, HTML, plots, image grids and a table for the terminal."""
