"""fairseq's transformer under masks of whole blocks: block-sparse attention equals the masked reference."""

import pytest
import torch

from attention_pruning import InputError, MaskRecipe, PruneMask
from attention_pruning.ops.cpu import native
from attention_pruning.ops.reasons import recorded
from test_pruned_attention import PAD, SITE_SETS, SITES, step_by_step
from tiny_translation import HEADS, LAYERS, build, prune_flags


@pytest.fixture
def block_files(tmp_path):
    """Masks of 16 x 16 blocks over 48 source and 32 target positions, some rows without a kept block: site -> file."""
    generator, files = torch.Generator().manual_seed(5), {}
    for site, (queries, keys) in {"enc-self": (48, 48), "dec-self": (32, 32), "enc-dec": (32, 48)}.items():
        allowed = torch.ones(queries, keys, dtype=torch.bool)
        allowed = allowed.tril() if site == "dec-self" else allowed
        pruned = torch.rand(LAYERS, HEADS, queries // 16, keys // 16, generator=generator) < 0.7
        recipe = MaskRecipe(0.7, rule="allowed", scope="layer", row_floor="none", block_size=16)
        files[site] = tmp_path / f"{site}.safetensors"
        PruneMask(pruned, allowed, site=site, causal=site == "dec-self", recipe=recipe).save(files[site])
    return files


def block_model(task, files, sites=SITES, backend="block_sparse", **more):
    flags = prune_flags(files, sites, attention_backend=backend, **more)
    del flags["TAU"], flags["rule"]
    return build(task, **flags)


def long_input(task):
    """Sources and targets of up to three and two blocks, padded on the right; one source ends in the first block."""
    generator = torch.Generator().manual_seed(7)

    def tokens(lengths):
        drawn = torch.randint(4, 10, (len(lengths), max(lengths)), generator=generator)
        return drawn.masked_fill(torch.arange(max(lengths)) >= torch.tensor(lengths)[:, None], PAD)

    return {"src_tokens": tokens((45, 9)), "src_lengths": torch.tensor([45, 9]), "prev_output_tokens": tokens((30, 21))}


@pytest.mark.parametrize("backend", ["auto", "block_sparse", "flex"])
@pytest.mark.parametrize("sites", SITE_SETS, ids="+".join)
def test_blocks_equal_the_reference_in_values_and_gradients(task, block_files, sites, backend):
    net_input = long_input(task)
    real, found, asked = net_input["prev_output_tokens"].ne(PAD), [], []
    for name in (backend, "reference"):
        model = block_model(task, block_files, sites, name).train()
        for module in model.modules():
            if hasattr(module, "apply_during_inference"):  # fairseq's dropout
                module.p = 0.0
        with recorded() as rows:
            output = model(**net_input)[0][real]
        asked = rows if name == backend else asked
        output.square().mean().backward()
        found.append([output.detach(), *(p.grad for p in model.parameters() if p.grad is not None)])
    for blocks, reference in zip(*found, strict=True):
        torch.testing.assert_close(blocks, reference, atol=1e-5, rtol=1e-4)
    if backend == "block_sparse" and native.runnable_builds():
        # All layers, though fairseq asks for the weights of the last one's cross-attention and then drops them.
        assert {row.backend for row in asked} == {"block_sparse"}
        assert sorted(row.site for row in asked) == sorted(site for site in sites for _ in range(LAYERS))


@pytest.mark.skipif(not native.runnable_builds(), reason="no compiled kernel")
def test_an_evaluation_leaves_blocks_out_at_all_sites(task, block_files):
    model, net_input = block_model(task, block_files), long_input(task)
    with torch.no_grad(), recorded() as rows:
        _, extra = model(**net_input)
    assert [row.backend for row in rows] == ["block_sparse"] * (len(SITES) * LAYERS)
    assert extra["attn"] == [None]


def test_weights_that_are_used_are_given(task, block_files):
    """By those who print alignments or train with them; without blocks that are left out then."""
    net_input, found = long_input(task), []
    for backend, wanted in (("block_sparse", True), ("reference", True), ("reference", False)):
        model = block_model(task, block_files, backend=backend, gives_weights=wanted)
        with torch.no_grad():
            found.append(model(**net_input)[1]["attn"][0])
    torch.testing.assert_close(found[0], found[1])
    assert found[0].shape == (2, 30, 45) and found[2] is None
    aligned = block_model(task, block_files, load_alignments=True)
    assert aligned.decoder.layers[0].encoder_attn.gives_weights


@pytest.mark.parametrize("sites", SITE_SETS, ids="+".join)
def test_incremental_decoding_equals_teacher_forcing_by_blocks(task, block_files, sites):
    model, net_input = block_model(task, block_files, sites), long_input(task)
    real = net_input["prev_output_tokens"].ne(PAD)
    with torch.no_grad():
        full = model(**net_input)[0]
        with recorded() as rows:
            steps = step_by_step(model, net_input)
    torch.testing.assert_close(steps[real], full[real], atol=1e-5, rtol=0)
    if native.runnable_builds():
        assert {row.backend for row in rows} == {"block_sparse"}


def test_a_layout_follows_the_mask_that_a_checkpoint_brings(task, block_files):
    model, net_input = block_model(task, block_files), long_input(task)
    with torch.no_grad():
        before = model(**net_input)[0]
        for name, buffer in model.state_dict().items():
            if name.endswith("prune_mask"):
                buffer.zero_()
        dense = build(task)(**net_input)[0]
        assert not torch.allclose(before, dense, atol=1e-3)
        torch.testing.assert_close(model(**net_input)[0], dense, atol=1e-5, rtol=1e-5)


def test_a_backend_that_knows_no_entmax_is_refused_beside_it(task, block_files):
    for backend in ("block_sparse", "flex", "triton"):
        with pytest.raises(InputError, match=f"--attention-backend {backend}: expected no --USE_ENTMAX"):
            block_model(task, block_files, backend=backend, USE_ENTMAX=True)
    with pytest.raises(InputError, match="--attention-backend: expected --PRUNE_BOOL beside it, found none"):
        build(task, attention_backend="auto")
