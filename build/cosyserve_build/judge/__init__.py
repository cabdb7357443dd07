"""Measure speech: word error rate by a speech recogniser, and signal defects."""
