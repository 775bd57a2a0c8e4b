"""Patterns and masks on disk: this library's safetensors, and the published ``.npy``."""
