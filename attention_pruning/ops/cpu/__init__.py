"""Block-sparse attention on a CPU: a compiled kernel and its operator in torch."""
