"""Block-sparse attention by Triton kernels: the backend for GPUs. Triton itself is imported when a kernel is needed."""
