"""Figures and the numbers beside them, one module each."""
