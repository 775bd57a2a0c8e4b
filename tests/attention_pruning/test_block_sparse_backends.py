"""Which backend computes: builds that agree, no compiler, FlexAttention, and what "auto" takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from attention_pruning import BlockLayout, InputError, pruned_attention
from attention_pruning.ops import DenseAttentionWarning, LayerMask, choice, flex, reasons
from attention_pruning.ops.call import Call
from attention_pruning.ops.cpu import native

REPOSITORY = Path(__file__).resolve().parents[2]
compiled = pytest.mark.skipif(not native.runnable_builds(), reason="the kernel is not compiled")


def inputs(gradients=False, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    tensors = [torch.randn(2, 3, n, 32, generator=generator).to(dtype) for n in (100, 130, 130)]
    return [x.requires_grad_(gradients) for x in tensors]


def layout(share=0.4, block=32):
    generator = torch.Generator().manual_seed(3)
    blocks = torch.rand(3, -(-100 // block), -(-130 // block), generator=generator) < share
    return BlockLayout.from_blocks(blocks, block, 100, 130)


def no_kernel(monkeypatch):
    """As after an installation without a compiler."""
    monkeypatch.setattr(native, "load", lambda build: None)
    monkeypatch.setattr(native, "_named", lambda wanted: None)
    monkeypatch.delenv(native.VARIABLE, raising=False)


@compiled
def test_every_build_gives_the_same(monkeypatch):
    found = []
    for build in native.runnable_builds():
        monkeypatch.setenv(native.VARIABLE, build)
        leaves = inputs(gradients=True)
        out = pruned_attention(*leaves, layout(), is_causal=True, dropout_p=0.1, dropout_seed=9, backend="block_sparse")
        out.sum().backward()
        found.append([out.detach(), *(x.grad for x in leaves)])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


@compiled
@pytest.mark.parametrize("dropout_p", [0.0, 0.2])
@pytest.mark.parametrize("backend", ["auto", "block_sparse"])
def test_a_compiled_function_is_one_graph(backend, dropout_p):
    kept = layout()

    def attended(q, k, v):
        return 3 * pruned_attention(2 * q, k, v, kept, backend=backend, dropout_p=dropout_p)

    found = []
    for function in (attended, torch.compile(attended, backend="aot_eager", fullgraph=True)):
        leaves = inputs(gradients=True)
        torch.manual_seed(7)
        out = function(*leaves)
        out.sum().backward()
        found.append([out, *(x.grad for x in leaves)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_the_compiler_of_torch_is_not_loaded_before_it_is_needed():
    code = "import sys, attention_pruning.cli; sys.exit('torch._dynamo' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@compiled
def test_an_unknown_build_is_refused(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "sse9")
    with pytest.raises(InputError, match="ATTENTION_PRUNING_KERNEL: expected one of portable"):
        pruned_attention(*inputs(), layout(), backend="block_sparse")


def test_without_a_compiler_torchs_own_attention_is_used_with_one_warning(monkeypatch):
    no_kernel(monkeypatch)
    monkeypatch.setattr(reasons, "_warned", set())
    with pytest.warns(DenseAttentionWarning, match="the kernel is not compiled") as warned:
        found = [pruned_attention(*inputs(), layout()) for _ in range(2)]
    assert len(warned) == 1
    torch.testing.assert_close(found[0], pruned_attention(*inputs(), layout(), backend="reference"))
    with pytest.raises(InputError, match="backend block_sparse: .* the kernel is not compiled"):
        pruned_attention(*inputs(), layout(), backend="block_sparse")


def test_a_user_may_do_without_the_kernel(monkeypatch):
    monkeypatch.setenv(native.VARIABLE, "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pruned_attention(*inputs(), layout())
    torch.testing.assert_close(found, pruned_attention(*inputs(), layout(), backend="reference"))
    with pytest.raises(InputError, match="backend block_sparse: .* ATTENTION_PRUNING_KERNEL is none"):
        pruned_attention(*inputs(), layout(), backend="block_sparse")


def test_the_installation_succeeds_without_a_compiler(tmp_path):
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"]
    command += ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
    missing = str(tmp_path / "no-compiler")
    before = {path: path.stat().st_mtime_ns for path in Path(native.__file__).parent.glob("*.so")}
    environment = os.environ | {"CC": missing, "CXX": missing}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert re.search("_block_sparse_portable was not compiled", run.stdout + run.stderr)
    assert before == {path: path.stat().st_mtime_ns for path in Path(native.__file__).parent.glob("*.so")}


@compiled
def test_the_kernel_refuses_what_it_cannot_compute():
    with pytest.raises(InputError, match="backend block_sparse: .* needs float32 or bfloat16, found torch.float64"):
        pruned_attention(*inputs(dtype=torch.float64), layout(), backend="block_sparse")
    wide = [torch.zeros(1, 3, n, 257) for n in (100, 130, 130)]
    with pytest.raises(InputError, match="head size of at most 256"):
        pruned_attention(*wide, layout(), backend="block_sparse")


@compiled
@pytest.mark.parametrize(("block", "share", "taken"), [(32, 0.3, "block_sparse"), (16, 1.0, "sdpa")])
def test_auto_skips_blocks_where_that_pays(monkeypatch, block, share, taken):
    monkeypatch.setitem(choice.COSTS, native.build(), ({16: 1.1, 32: 0.9}, {}))
    with reasons.recorded() as rows:
        found = pruned_attention(*inputs(), layout(share, block), attn_bias=torch.zeros(1))
    assert [row.backend for row in rows] == [taken]
    torch.testing.assert_close(found, pruned_attention(*inputs(), layout(share, block), backend="reference"))


@compiled
@pytest.mark.parametrize("build", native.runnable_builds())
def test_the_choice_is_that_of_the_build(monkeypatch, build):
    """A table for each: what a slow build loses, a fast one may win."""
    monkeypatch.setenv(native.VARIABLE, build)
    monkeypatch.setitem(choice.COSTS, build, ({32: 5.0}, {}))
    with reasons.recorded() as rows:
        pruned_attention(*inputs(), layout(0.4))
    assert rows[0].backend == "sdpa" and "measured to be faster" in rows[0].reason


@pytest.mark.parametrize("low", [-torch.inf, torch.finfo(torch.float32).min], ids=["-inf", "the lowest float32"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fused_attention_is_uniform_where_a_bias_hides_all_that_is_kept(monkeypatch, dtype, low):
    """As the kernel and the reference are; the lowest float32 is beyond bfloat16."""
    monkeypatch.setenv(native.VARIABLE, "none")
    bias = torch.randn(1, 3, 100, 130, generator=torch.Generator().manual_seed(4))
    bias[:, 1, 5] = -torch.inf
    bias[:, 2, :, 7] = low
    leaves = inputs(gradients=True, dtype=dtype)
    found = pruned_attention(*leaves, layout(), attn_bias=bias)
    found.float().sum().backward()
    wanted = pruned_attention(*(x.float() for x in leaves), layout(), attn_bias=bias, backend="reference")
    torch.testing.assert_close(found.float(), wanted, atol=2e-2 if dtype == torch.bfloat16 else 1e-5, rtol=1e-4)
    torch.testing.assert_close(found[:, 1, 5], leaves[2][:, 1].mean(1), atol=2e-2, rtol=2e-2)
    assert all(x.grad.isfinite().all() for x in leaves)


def test_flex_refuses_what_it_cannot_compute():
    with pytest.raises(InputError, match="backend flex: .* needs no dropout"):
        pruned_attention(*inputs(), layout(), dropout_p=0.1, backend="flex")
    with pytest.raises(InputError, match="backend flex: .* needs a GPU for gradients"):
        pruned_attention(*inputs(gradients=True), layout(), backend="flex")


@pytest.mark.slow
def test_flex_gives_the_same_with_one_graph_for_all_layers_and_lengths():
    """Inference on the CPU; it compiles for some seconds, and not again for another layout or as many blocks."""
    from torch._dynamo.utils import counters

    q, k, v = inputs()
    padding = torch.zeros(2, 130, dtype=torch.bool)
    padding[0, 90:] = True
    counters.clear()
    for share, shorter in ((0.3, 0), (0.8, 0), (0.8, 1)):
        call = [x[:, :, : x.shape[2] - shorter] for x in (q, k, v)]
        arguments = {"key_padding_mask": padding[:, : 130 - shorter], "is_causal": True}
        found = pruned_attention(*call, layout(share), backend="flex", **arguments)
        wanted = pruned_attention(*call, layout(share), backend="reference", **arguments)
        torch.testing.assert_close(found, wanted)
    assert counters["stats"]["unique_graphs"] == 1


def test_flex_is_asked_for_small_blocks_on_a_gpu_by_versions_of_torch_that_bear_them(monkeypatch):
    mask = LayerMask(torch.zeros(3, 2, 2, dtype=torch.bool), 64, 128, 128)
    call = Call.check(*(torch.zeros(1, 3, 128, 32) for _ in range(3)), mask)

    class OnGpu:
        device, dtype, shape, requires_grad = torch.device("cuda"), torch.float32, call.q.shape, False

    object.__setattr__(call, "q", OnGpu())
    monkeypatch.setattr(torch, "__version__", "2.13.1")
    assert flex.refusal(call) is None
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert "blocks below 128, found 2.99.0" in flex.refusal(call)
