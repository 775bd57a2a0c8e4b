"""A program for an environment that has the library and nothing of the repository: does what was installed work?

It prints one line of JSON: where the library is, its version, and which builds of the kernel it loads. With --kernel it
fails where there is none.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

import torch

import attention_pruning
from attention_pruning.ops.cpu import native


def probabilities(attention, args, kwargs, output):
    """Those of a call of torch's own layer, which does not keep them."""
    return attention.forward(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})[1]


torch.manual_seed(0)
model = torch.nn.TransformerEncoderLayer(d_model=32, nhead=2, batch_first=True)
batches = [torch.randn(3, 64, 32) for _ in range(2)]
pattern = attention_pruning.collect(model, {"self_attn": probabilities}, batches, progress=False)
mask = attention_pruning.make.from_pattern(pattern, tau=0.5, rule="allowed", block_size=16)
assert 0.4 < mask.effective_sparsity <= 0.5, mask

q_BHLD, k_BHLD, v_BHLD = torch.randn(3, 2, 2, 64, 16)
expected_BHLD = attention_pruning.pruned_attention(q_BHLD, k_BHLD, v_BHLD, mask.layer(0), backend="reference")
builds = native.runnable_builds()
assert builds or "--kernel" not in sys.argv, native.missing()
for backend in ("auto", *(["block_sparse"] if builds else [])):
    found_BHLD = attention_pruning.pruned_attention(q_BHLD, k_BHLD, v_BHLD, mask.layer(0), backend=backend)
    torch.testing.assert_close(found_BHLD, expected_BHLD)

print(
    json.dumps(
        {
            "folder": str(Path(attention_pruning.__file__).parent),
            "version": importlib.metadata.version("attention-pruning"),
            "builds": builds,
        }
    )
)
