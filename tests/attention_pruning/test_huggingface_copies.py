"""Masks in models on the meta device, in replicas and under DistributedDataParallel."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from attention_pruning import LayerMask, MaskRecipe, PruneMask
from attention_pruning.huggingface import model_masks, prune_model
from tiny_models import MODELS, batch_for, make, padded, random_masks, real_outputs

NAMES = list(MODELS)
#: transformers itself looks at the numbers of an input in GPT-2 and BART, and of every attention mask.
ON_META = [name for name in NAMES if name not in ("GPT-2", "BART")]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_ours_is_a_parameter_or_a_buffer(name):
    """Nothing to broadcast for DistributedDataParallel, to copy for a replica, or to fill after ``to_empty``."""
    model = make(name)
    before = [[name for name, _ in tensors()] for tensors in (model.named_parameters, model.named_buffers)]
    prune_model(model, random_masks(name, 0.5))
    assert [[name for name, _ in tensors()] for tensors in (model.named_parameters, model.named_buffers)] == before


def tensors_of(model):
    """Parameters and buffers, tied ones under all their names."""
    return dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_pruned_on_meta_is_right_when_it_gets_its_weights(name):
    masks, batch, whole = random_masks(name, 0.5), batch_for(name), make(name, implementation="sdpa")
    model = prune_model(copy.deepcopy(whole).to("meta"), masks).to_empty(device="cpu")
    given = tensors_of(whole)
    with torch.no_grad():
        for own, tensor in tensors_of(model).items():
            if own in given:
                tensor.copy_(given[own])
            else:  # what to_empty leaves in a tensor of ours
                tensor.fill_(True)
    assert model_masks(model) == masks
    assert torch.equal(real_outputs(model, batch), real_outputs(prune_model(whole, masks), batch))


@pytest.mark.parametrize("name", ON_META)
def test_a_pruned_model_runs_on_meta_where_the_dense_one_does(name):
    batch = {key: value.to("meta") for key, value in batch_for(name).items() if "mask" not in key}
    expected = make(name, implementation="sdpa").to("meta")(**batch)[0]
    found = prune_model(make(name), random_masks(name, 0.5)).to("meta")(**batch)[0]
    assert found.is_meta and found.shape == expected.shape


def replica(model):
    """The model as ``nn.parallel.replicate`` copies it for another device, at every step of ``nn.DataParallel``."""
    copies = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, other in copies.items():
        for name, child in module._modules.items():
            other._modules[name] = copies.get(child)
            if isinstance(child, torch.nn.Module):
                setattr(other, name, copies[child])
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                other.__dict__[name] = tensor  # a view of the original's, and no parameter of the replica
    return copies[model]


@pytest.mark.parametrize("name", ["BERT", "BART"])
def test_a_replica_attends_under_the_masks(name):
    model, batch = prune_model(make(name), random_masks(name, 0.5)), batch_for(name)
    assert torch.equal(real_outputs(replica(model), batch), real_outputs(model, batch))


def test_replicas_share_their_layouts(monkeypatch):
    made = []
    make_layout = LayerMask._make_layout
    monkeypatch.setattr(LayerMask, "_make_layout", lambda mask, size: made.append(size) or make_layout(mask, size))
    length = 32
    pattern = random_masks("GPT-2", 0.5, extra=length - 7)["self"]
    pruned = torch.zeros(pattern.layers, pattern.heads, 2, 2, dtype=torch.bool)
    pruned[..., 1, 0] = True
    recipe = MaskRecipe(0.5, row_floor="none", block_size=16)
    mask = PruneMask(pruned, pattern.allowed, site="self", causal=True, recipe=recipe)
    model, batch = prune_model(make("GPT-2"), mask, "block_sparse"), padded((length,), length)
    expected = real_outputs(replica(model), batch)
    for _ in range(2):
        assert torch.equal(real_outputs(replica(model), batch), expected)
    assert made == [16] * mask.layers


@pytest.fixture
def one_process(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("name", ["BERT", "Llama"])
def test_distributed_data_parallel_trains_under_the_masks(name, one_process):
    batch, masks = batch_for(name), random_masks(name, 0.5)
    model, wrapped = prune_model(make(name), masks), DistributedDataParallel(prune_model(make(name), masks))
    for one in (model, wrapped):
        one(**batch).logits[batch["attention_mask"].bool()].square().mean().backward()
    for (own, weight), other in zip(model.named_parameters(), wrapped.module.parameters(), strict=True):
        torch.testing.assert_close(other.grad, weight.grad, atol=1e-6, rtol=1e-5, msg=own)
