"""Committed results -> the numbers in README.md and docs/."""
