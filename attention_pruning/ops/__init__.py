"""Block-sparse attention: a layout of kept blocks and what computes attention over them alone."""

from .attention import block_sparse_attention
from .layout import BlockLayout

__all__ = ["BlockLayout", "block_sparse_attention"]
