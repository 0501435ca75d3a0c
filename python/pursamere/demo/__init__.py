"""The demonstration behind ``pursamere demo``: real digits, a classifier, a purifier, and attacks on both."""
