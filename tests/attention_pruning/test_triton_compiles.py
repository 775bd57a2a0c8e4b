"""The Triton kernels compile for a GPU that is not there: the interpreter accepts what the compiler does not."""

from __future__ import annotations

import pytest
import torch

from attention_pruning import BlockLayout
from attention_pruning.ops.call import Call
from attention_pruning.ops.triton import availability

pytestmark = [
    pytest.mark.skipif(availability.missing() is not None, reason="Triton is not installed"),
    pytest.mark.skipif(availability.INTERPRETED, reason="Triton interprets in this process"),
]

H100_SHARED_MEMORY = 227 * 1024
TYPES = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8",
    torch.bool: "*i1",
}


def compile_for_h100(launch, *arguments):
    """As the first call of a launch would on an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, constants, attributes = {}, {}, {}
    values = [*arguments, *launch.constants]
    for index, (parameter, value) in enumerate(zip(launch.kernel.params, values, strict=True)):
        known = (
            parameter.is_constexpr
            or value is None
            or (isinstance(value, int) and value == 1 and not parameter.do_not_specialize)
        )
        if known:
            signature[parameter.name], constants[index,] = "constexpr", value
            continue
        of_number = "i32" if isinstance(value, int) else "fp32"
        signature[parameter.name] = TYPES[value.dtype] if isinstance(value, torch.Tensor) else of_number
        if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
            attributes[index,] = [["tt.divisibility", 16]]
    source = ASTSource(launch.kernel, signature, constants, attributes)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options=launch.options)


@pytest.mark.parametrize(
    ("block", "size", "everything"),
    [(64, 64, False), (16, 16, True)],
    ids=["blocks of 64", "all options, blocks of 16"],
)
def test_all_kernels_compile_and_fit(block, size, everything, monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from attention_pruning.ops.triton import launch, op

    compiled = []
    monkeypatch.setattr(launch.Launch, "__call__", lambda *call: compiled.append(compile_for_h100(*call)))
    monkeypatch.setattr(launch, "_launches", {})
    generator = torch.Generator().manual_seed(3)
    cells = torch.rand(2, 4 * block, 4 * block, generator=generator) < 0.5
    whole = BlockLayout.from_blocks(cells[:, ::block, ::block], block)
    layout = BlockLayout.from_cells(cells, block) if everything else whole
    q, k, v, g = (torch.zeros(1, 2, 4 * block, size, dtype=torch.bfloat16, requires_grad=True) for _ in range(4))
    leaves, options = [q, k, v], {}
    if everything:
        bias = torch.zeros(1, 2, 4 * block, 4 * block, requires_grad=True)
        relative = g.detach().requires_grad_(), g[0].detach().requires_grad_()
        leaves += [bias, *relative]
        options = {"is_causal": True, "dropout_p": 0.1, "attn_bias": bias, "relative": relative}
        options["key_padding_mask"] = torch.zeros(1, 4 * block, dtype=torch.bool)
    out = op.attend(Call.check(q, k, v, layout, **options), layout)
    torch.autograd.grad(out, leaves, g)
    assert [kernel.metadata.name for kernel in compiled] == ["forward", "backward_queries", "backward_keys"]
    assert all(kernel.metadata.shared <= H100_SHARED_MEMORY for kernel in compiled)
