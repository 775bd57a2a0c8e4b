"""Attention for ``torch.compile``, which breaks its graph here: it cannot look into the compiled kernel."""

import torch

from . import attention

attend = torch.compiler.disable(attention.attend)
