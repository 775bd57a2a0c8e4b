"""Transformer-XL in loops, as sections 3.2 and 3.3 of Dai et al. (2019) state it, with pruned cells left out."""

from __future__ import annotations

import torch


def sinusoid(distance, width):
    angle = distance / 10000 ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([angle.sin(), angle.cos()])


def visible_keys(query, memory, config):
    """Keys that the structure shows to a query; with ``same_length`` its own and the mem_len - 1 before it."""
    own = memory + query
    first = own - config.mem_len + 1 if config.same_length else 0
    return range(max(first, 0), own + 1)


def attention(layer, u, v, hidden_TE, memory_ME, pruned_HTK, config):
    """Output [T, E] of one attention layer for one text, and its probabilities as a list of (head, query, key, p)."""
    heads, size, slots = config.n_head, config.d_head, len(memory_ME)
    inputs = torch.cat([memory_ME, hidden_TE])
    inputs = layer.layer_norm(inputs) if config.pre_lnorm else inputs
    q, k, value = (layer.qkv_net(inputs).view(len(inputs), 3, heads, size)[:, i] for i in range(3))
    rows, probabilities = [], []
    for i in range(len(hidden_TE)):
        row = []
        for h in range(heads):
            keys = list(visible_keys(i, slots, config))
            kept = [j for j in keys if not pruned_HTK[h, i, config.mem_len - slots + j]]
            scores = []
            for j in kept:
                distance = slots + i - j
                if config.clamp_len > 0:
                    distance = min(distance, config.clamp_len)
                position = layer.r_net(sinusoid(distance, config.d_model)).view(heads, size)[h]
                scores.append(((q[slots + i, h] + u[h]) @ k[j, h] + (q[slots + i, h] + v[h]) @ position) / size**0.5)
            p = torch.stack(scores).softmax(0) if kept else torch.full((len(keys),), 1 / len(keys), dtype=torch.float64)
            kept = kept or keys
            row.append(p @ value[kept, h])
            probabilities += [(h, i, config.mem_len - slots + j, p[n].item()) for n, j in enumerate(kept)]
        rows.append(torch.cat(row))
    output = hidden_TE + layer.o_net(torch.stack(rows))
    return output if config.pre_lnorm else layer.layer_norm(output), probabilities


def naive_hidden(model, ids_T, memories=None):
    """Last layer's output [T, E] for one text (a double model, no dropout), memories [layer][M, E], and probabilities.

    Memories hold what each layer was given; probabilities are lists by layer, key positions counted in mem_len slots.
    """
    config = model.config
    hidden = model.word_emb(ids_T[None])[0]
    if memories is None:
        memories = [hidden.new_zeros(0, config.d_model)] * config.n_layer
    pruned = model.pruned
    if pruned is None:
        shape = (config.n_layer, config.n_head, config.tgt_len, config.mem_len + config.tgt_len)
        pruned = torch.zeros(shape, dtype=torch.bool)
    new, probabilities = [], []
    for index, layer in enumerate(model.layers):
        joined = torch.cat([memories[index], hidden.detach()])
        new.append(joined[max(len(joined) - config.mem_len, 0) :])
        hidden, p = attention(layer.dec_attn, *model.biases(index), hidden, memories[index], pruned[index], config)
        probabilities.append(p)
        hidden = layer.pos_ff(hidden)
    return hidden, new, probabilities
