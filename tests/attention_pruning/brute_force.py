"""The method of docs/method.md in plain loops over plain numbers: what the tensors of attention_pruning must agree
with.

A cell is a tuple of indices; averages are dictionaries from cells to floats, masks are sets of cells. Slow and
readable.
"""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from math import floor

import numpy as np


def is_visible(query, key, query_length, key_length, causal):
    return not causal or key <= query + (key_length - query_length)


def visible_cells(query_length, key_length, causal):
    cells = product(range(query_length), range(key_length))
    return {(q, k) for q, k in cells if is_visible(q, k, query_length, key_length, causal)}


def accumulate(batches, layers, heads, query_length, key_length, causal):
    """Mean and count of every cell; a batch: probabilities[layer][b, head, q, k], what is real, offsets, window."""
    total, count = {}, {}
    for probabilities, real_query, real_key, query_offset, key_offset, window in batches:
        batch, _, queries, keys = probabilities[0].shape
        for b, q, k in product(range(batch), range(queries), range(keys)):
            cell = (q + query_offset, k + key_offset)
            real = real_query[b][q] and real_key[b][k]
            if real and window[q][k] and is_visible(*cell, query_length, key_length, causal):
                count[cell] = count.get(cell, 0) + 1
                for layer, head in product(range(layers), range(heads)):
                    at = (layer, head, *cell)
                    total[at] = total.get(at, 0.0) + float(probabilities[layer][b, head, q, k])
    return {at: value / count[at[2:]] for at, value in total.items()}, count


def blocks_of(cells, size):
    """The blocks that hold at least one of these (query, key) cells."""
    return {(q // size, k // size) for q, k in cells}


def pooled(average, allowed, size):
    """Mean of each (layer, head) over the allowed cells of each block, as an array; 0 for a block without any."""
    layers, heads, queries, keys = average.shape
    result = np.zeros((layers, heads, -(-queries // size), -(-keys // size)))
    for layer, head, i, j in np.ndindex(result.shape):
        values = [float(average[layer, head, q, k]) for q, k in allowed if (q // size, k // size) == (i, j)]
        if values:
            result[layer, head, i, j] = sum(values) / len(values)
    return result


def by_distance(average, allowed, size):
    """Mean of each (layer, head) over the blocks with an allowed cell and the same query - key, for each block."""
    blocks = blocks_of(allowed, size)
    result = np.zeros(average.shape)
    for layer, head, i, j in np.ndindex(average.shape):
        values = [float(average[layer, head, q, k]) for q, k in blocks if q - k == i - j]
        if values:
            result[layer, head, i, j] = sum(values) / len(values)
    return result


def group_of(at, scope):
    layer, head, query, _ = at
    return {"layer": layer, "head": (layer, head), "row": (layer, head, query), "model": None}[scope]


def prune(average, visible, allowed, tau, *, rule, scope, size, row_floor, unobserved, crop):
    """The pruned blocks (layer, head, i, j), from an array of block averages and sets of (query, key) cells."""
    if tau == 0:
        return set()
    seen, reachable = blocks_of(allowed, size), blocks_of(visible, size)
    everything = list(np.ndindex(average.shape))  # in flat index order
    if rule == "published" and crop:
        top, bottom = min(i for i, _ in seen), max(i for i, _ in seen)
        left, right = min(j for _, j in seen), max(j for _, j in seen)
        everything = [at for at in everything if top <= at[2] <= bottom and left <= at[3] <= right]
    if rule == "allowed":
        everything = [at for at in everything if at[2:] in seen]

    groups = {}
    for at in everything:
        groups.setdefault(group_of(at, scope), []).append(at)
    pruned = set()
    for members in groups.values():
        values = [float(average[at]) for at in members]
        if rule == "allowed":
            order = sorted(range(len(members)), key=lambda n, values=values: (values[n], n))
            pruned |= {members[n] for n in order[: floor(Fraction(str(tau)) * len(members))]}
        else:
            threshold = np.percentile(values, float(Fraction(str(tau)) * 100), method="nearest")
            pruned |= {at for at, value in zip(members, values, strict=True) if value <= threshold}

    never_seen = {at for at in np.ndindex(average.shape) if at[2:] in reachable and at[2:] not in seen}
    pruned = pruned - never_seen if unobserved == "keep" else pruned | never_seen
    return pruned - restored(pruned, average, allowed, size) if row_floor == "keep-best" else pruned


def restored(pruned, average, allowed, size):
    """The best block (of equals the last) of every row that has allowed cells and kept none."""
    layers, heads, _, _ = average.shape
    back = set()
    for layer, head, query in product(range(layers), range(heads), sorted({q for q, _ in allowed})):
        useful = sorted({(query // size, k // size) for q, k in allowed if q == query})
        if all((layer, head, *block) in pruned for block in useful):
            back.add((layer, head, *max(useful, key=lambda block: (average[layer, head, *block], block[1]))))
    return back


def cells_of(pruned, size, query_length, key_length):
    """Every (layer, head, query, key) within pruned blocks."""
    return {
        (layer, head, q, k)
        for layer, head, i, j in pruned
        for q in range(i * size, min((i + 1) * size, query_length))
        for k in range(j * size, min((j + 1) * size, key_length))
    }


def prune_as_much(pruned, score, allowed, row_floor, use):
    """Cells only: of each layer the lowest ones (ties by query, key, head) whose use is nearest to that of ``pruned``.

    ``use`` maps (query, key) to a weight.
    """
    layers, heads, _, _ = score.shape
    chosen = {at for at in pruned if at[2:] not in allowed}
    for layer in range(layers):
        wanted = sum(use[at[2:]] for at in pruned if at[0] == layer and at[2:] in allowed)
        protected = set()
        if row_floor == "keep-best":
            for head, query in product(range(heads), {q for q, _ in allowed}):
                keys = sorted(k for q, k in allowed if q == query)
                protected.add((head, query, max(keys, key=lambda k: (score[layer, head, query, k], k))))
        order = sorted((score[layer, h, q, k], q, k, h) for h in range(heads) for q, k in allowed)
        free = [(layer, h, q, k) for _, q, k, h in order if (h, q, k) not in protected]
        prefixes = [free[:number] for number in range(len(free) + 1)]
        chosen |= set(min(prefixes, key=lambda cells: abs(sum(use[at[2:]] for at in cells) - wanted)))
    return chosen


def effective_sparsity(pruned_cells, allowed, layers, heads):
    return sum(at[2:] in allowed for at in pruned_cells) / (len(allowed) * layers * heads)


def block_sparsity(pruned_cells, visible, allowed, layers, heads, size):
    skipped = 0
    for layer, head, (i, j) in product(range(layers), range(heads), blocks_of(allowed, size)):
        inside = [(q, k) for q, k in visible if (q // size, k // size) == (i, j)]
        skipped += all((layer, head, q, k) in pruned_cells for q, k in inside)
    return skipped / (layers * heads * len(blocks_of(allowed, size)))


def evaluated_sparsity(pruned_cells, count, layers, heads):
    used = sum(count[at[2], at[3]] for at in pruned_cells)
    return float(used) / float(count.sum() * layers * heads)


def empty_rows(pruned_cells, allowed, layers, heads):
    rows = product(range(layers), range(heads), {q for q, _ in allowed})
    return sum(
        all((layer, head, query, k) in pruned_cells for q, k in allowed if q == query) for layer, head, query in rows
    )
