"""PrunedCache: keys and values that no later row of a mask keeps leave the cache, and logits stay what they were.

A mask says in advance which keys later queries will read. A layer's cache holds what some later row of the mask still
needs, for each head of keys and values by itself: grouped query heads keep what any of them keeps. What is held lies in
any order; beside it stands which column of the mask each key is. Under a mask by distance that is a ring of the longest
band of each head of keys, and the sinks: memory does not grow with the length.

Letters in names: B batch, G heads of keys and values, S keys that are held, D head size, Q rows and K columns.
"""

from __future__ import annotations

import weakref

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from ..distance_mask import DistanceMask
from ..errors import InputError
from .attention_site import SITE_ATTRIBUTE, AttentionSite
from .forward import IMPLEMENTATION
from .held_keys import HELD, rows_at
from .last_rows import last_empty_row, last_rows, last_rows_by_distance
from .positions import Places
from .sites import find_stacks

#: Keys for which there is room beyond those that are held: so many steps pass until the next look at what may go.
ROOM = 32
#: What a layer cannot do with keys that are gone.
_GONE = "keys that left a PrunedCache cannot come back"


class PrunedLayer(CacheLayerMixin):
    """The cache of one layer that prunes.

    Parameters
    ----------
    site : AttentionSite
        Causal, with a mask: a square one, or by distance.
    kv_heads : int
        G.

    Attributes
    ----------
    mask : LayerMask
        That of the site.
    columns : Tensor
        int32 [B, G, room]: the column of the mask in which each key stands; -1 for none.
    base : int or Tensor
        By distance: how far rows, and columns behind the sinks, lie before their positions, int64 [B] where sequences
        differ. Whenever keys leave, those that stay are numbered anew, from where rows begin to repeat: so a short mask
        serves at any length.
    length : int
        Tokens that were seen, held or not, padding included.
    """

    is_sliding = False
    is_croppable = False

    def __init__(self, site: AttentionSite, kv_heads: int) -> None:
        super().__init__()
        self.mask, self.kv_heads = site.layer_mask, kv_heads
        self.distances: DistanceMask | None = site.mask if site.any_length else None
        if self.distances is None:
            self.last_rows = last_rows(self.mask, kv_heads)
        else:
            self.last_rows = last_rows_by_distance(self.distances, site.layer, kv_heads)
        self._forget_all()

    def _forget_all(self) -> None:
        self.keys = self.values = self.columns = None
        self.is_initialized = False
        self.length = self._used = self._placed = 0
        self.base: int | Tensor = 0
        self._row_B: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads = key_states.shape[:2]
        if heads != self.kv_heads:
            raise InputError(f"PrunedCache: expected {self.kv_heads} heads of keys, those of the model, found {heads}")
        self.dtype, self.device = key_states.dtype, key_states.device
        self.last_rows = self.last_rows.to(self.device)
        self.keys, self.values = (x.new_empty(batch, heads, 0, x.shape[-1]) for x in (key_states, value_states))
        self.columns = torch.empty(batch, heads, 0, dtype=torch.int32, device=self.device)
        self._row_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """All keys and values that the new queries may need: [B, G, S, D]. Where they stand, ``place`` has to say."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if torch.is_grad_enabled() and key_states.requires_grad:
            raise InputError("PrunedCache: expected no gradients (torch.no_grad), found keys that ask for one")
        if self._placed != self._used:
            raise InputError("PrunedCache: expected the attention of its pruned model after each update, found another")
        count = key_states.shape[2]
        if self._used + count > self.keys.shape[2]:
            self._hold_needed(count if count > ROOM else ROOM)
        new = slice(self._used, self._used + count)
        self.keys[:, :, new], self.values[:, :, new] = key_states, value_states
        self._used += count
        self.length += count
        keys, values = self.keys[:, :, : self._used], self.values[:, :, : self._used]
        setattr(keys, HELD, self)
        return keys, values

    def place(self, places: Places) -> None:
        """Note the columns of the keys that came last, as the mask of the call tells them; padding has none."""
        new = slice(self._placed, self._used)
        column_B1S = rows_at(places.query.index, self.base).reshape(-1, 1, places.queries)
        if places.key.real is not None and (places.offset is None or places.padding is not None):
            real_BS = places.key.real[:, places.keys - places.queries : places.keys]
            column_B1S = column_B1S.masked_fill(~real_BS[:, None], -1)
        self.columns[:, :, new] = column_B1S
        self._placed = self._used

    @property
    def next_row_B(self) -> Tensor:
        """int64: the row of the token that comes next in each sequence."""
        last_B = self.held_columns.amax((1, 2)) if self._used else self.held_columns.new_full((len(self.columns),), -1)
        return torch.maximum(self._row_B, last_B + 1)

    def forget(self, count: int) -> None:
        """Let go of what no row after a call of so many tokens needs: after a prompt at once, else when room is out."""
        if count > ROOM:
            self._hold_needed(ROOM)

    def _needed(self) -> Tensor:
        """bool [B, G, S]: which of the keys held some later row needs."""
        columns = self.columns[:, :, : self._used].long()
        return (columns >= 0) & (self.last_rows.of(columns.clamp(min=0)) >= self._row_B[:, None, None])

    def _hold_needed(self, room: int) -> None:
        """Move what is needed into new memory with room for so many more; sequences and heads take that of the most."""
        self._row_B = self.next_row_B
        needed = self._needed()
        count = int(needed.sum(-1).max()) if needed.numel() else 0
        order = needed.byte().argsort(dim=-1, descending=True, stable=True)[:, :, :count]
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_empty(*old.shape[:2], count + room, old.shape[3])
            new[:, :, :count] = old.gather(2, order[..., None].expand(-1, -1, -1, old.shape[3]))
            setattr(self, name, new)
        columns = self.columns.new_full((*self.columns.shape[:2], count + room), -1)
        columns[:, :, :count] = self.columns.gather(2, order).masked_fill(~needed.gather(2, order), -1)
        self.columns = columns
        self._used = self._placed = count
        if self.distances is not None:
            self._number_anew()

    def _number_anew(self) -> None:
        """Move rows and columns back to where the mask begins to repeat. No key is needed from further back."""
        moved_B = self.distances.moved(self._row_B)
        if not moved_B.any():
            return
        self.columns -= (moved_B[:, None, None] * (self.columns >= self.distances.sinks)).int()
        self._row_B = self._row_B - moved_B
        base_B = self.base + moved_B
        self.base = int(base_B[0]) if (base_B == base_B[0]).all() else base_B

    @property
    def held_columns(self) -> Tensor:
        """int32 [B, G, S]: where the keys of the last update stand."""
        return self.columns[:, :, : self._used]

    @property
    def nbytes(self) -> int:
        """Memory of keys, values and their columns."""
        return sum(x.nbytes for x in (self.keys, self.values, self.columns)) if self.is_initialized else 0

    # What transformers asks of a layer

    def get_seq_length(self) -> int:
        return self.length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Of the whole sequence: masks tell positions, whatever is held."""
        return self.length + query_length, 0

    def get_max_length(self) -> int:
        """Tokens that may be seen; -1 for any number, which is transformers' word for it."""
        return -1 if self.distances is not None else self.mask.key_length

    @property
    def rows(self) -> int:
        """Rows of the mask; by distance up to the last that does not repeat another."""
        if self.distances is None:
            return self.mask.query_length
        return self.distances.repeating + self.distances.block_size

    def reset(self) -> None:
        self._forget_all()

    def _take_sequences(self, index: Tensor) -> None:
        if self.is_initialized:
            for name in ("keys", "values", "columns", "_row_B", "base"):
                if isinstance(tensor := getattr(self, name), Tensor):
                    setattr(self, name, tensor.index_select(0, index.to(self.device)))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._take_sequences(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        index = torch.as_tensor(indices)
        self._take_sequences(index.nonzero().flatten() if index.dtype == torch.bool else index)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.is_initialized:
            self._take_sequences(torch.arange(len(self.keys)).repeat_interleave(repeats))

    def crop(self, *_: object, **__: object) -> None:
        raise InputError(f"PrunedCache: expected tokens to be added alone, found a crop: {_GONE}")


class PrunedCache(Cache):
    """A cache for ``generate`` and forward passes of a pruned decoder: ``past_key_values=PrunedCache(model)``.

    It holds the keys and values that some later row of the mask needs, for each layer and head of keys and values, with
    the same logits: batches, left padding, beams, sampling and prompts in pieces. Memory is that of what is held, plus
    room for ``ROOM`` tokens; sequences and heads of a layer take that of the one which holds the most. What stays, and
    why, ``describe`` says. Under a mask by distance that is bounded, and so is nothing else: any number of tokens may
    come.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder with masks, as ``prune_model`` leaves it. Layers that prune nothing have a cache of transformers' own.

    Raises
    ------
    InputError
        If it has no masks of causal self-attention, or attends densely beyond them: then no key is ever done with.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        title = type(model).__name__
        stacks = find_stacks(model).values()
        if windows := [stack.window for stack in stacks if stack.window is not None]:
            raise InputError(f"PrunedCache: expected a model without a sliding window, found one of {windows[0]}")
        stack = next((stack for stack in stacks if stack.causal and not stack.cross), None)
        sites = [] if stack is None else [getattr(module, SITE_ATTRIBUTE, None) for module in stack.modules]
        masked = [site for site in sites if site is not None and site.mask is not None]
        if not masked:
            raise InputError(f"PrunedCache: expected a decoder with masks (prune_model), found {title} without")
        if masked[0].beyond == "dense" and not masked[0].any_length:
            raise InputError(
                f"PrunedCache: expected {title} to refuse positions beyond its mask, found beyond='dense', where every "
                "key is needed for ever"
            )
        by_index = sorted(
            zip(stack.modules, sites, strict=True), key=lambda pair: getattr(pair[0], "layer_idx", 0) or 0
        )
        super().__init__(layers=[_layer_of(*pair) for pair in by_index])
        self._model = weakref.ref(model)

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """As of any cache; refused where another attention than this library's would read what is left."""
        model = self._model() if layer_idx == 0 else None  # once for all layers of a call
        if model is not None and model.config._attn_implementation != IMPLEMENTATION:
            found = model.config._attn_implementation
            raise InputError(f"PrunedCache: expected the attention implementation {IMPLEMENTATION!r}, found {found!r}")
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

    @property
    def nbytes(self) -> int:
        """Memory that is held now."""
        return sum(_nbytes(layer) for layer in self.layers)

    def keys_needed(self, length: int | None = None) -> Tensor:
        """int64 [layers, length]: how many keys the fullest head of each layer needs after each row of the mask.

        Times batch x heads of keys x head size x 2 x bytes of a number that is the memory against the position, room
        and columns aside.

        Parameters
        ----------
        length : int, optional
            Rows to tell of; by default all of the mask, by distance those after which it repeats: no row needs more
            than they do.

        Raises
        ------
        InputError
            For more rows than the mask has.
        """
        first = next(layer for layer in self.layers if isinstance(layer, PrunedLayer))
        rows = first.rows if length is None else length
        if rows < 1 or (first.distances is None and rows > first.rows):
            most = "" if first.distances is not None else f" to {first.rows}, the rows of the mask"
            raise InputError(f"length: expected 1{most or ' or more'}, found {length}")
        return torch.stack([_keys_needed(layer, rows) for layer in self.layers])

    def describe(self) -> str:
        """A line for each layer: how many keys it needs at most, and what keeps keys from leaving."""
        lines = [f"{self.nbytes / 1e6:.1f} MB held"]
        for number, layer in enumerate(self.layers):
            if not isinstance(layer, PrunedLayer):
                lines.append(f"layer {number}: prunes nothing, holds all keys")
                continue
            most = int(_keys_needed(layer, layer.rows).max())
            of = f"of {layer.rows}" if layer.distances is None else "at any length"
            line = f"layer {number}: needs at most {most} keys {of}"
            shared = layer.mask.heads // layer.kv_heads
            if shared > 1:
                line += f"; {shared} query heads share each and hold what any of them keeps"
            last = -1 if layer.distances is not None else int(last_empty_row(layer.mask, layer.kv_heads).max())
            if last >= 0:
                line += (
                    f"; rows left empty read every value: a head holds all keys until its last one, up to row {last}"
                )
            lines.append(line)
        return "\n".join(lines)

    def __repr__(self) -> str:
        pruned = sum(isinstance(layer, PrunedLayer) for layer in self.layers)
        return f"PrunedCache({len(self.layers)} layers, {pruned} pruned, {self.nbytes / 1e6:.1f} MB held)"


def _layer_of(module: nn.Module, site: AttentionSite | None) -> CacheLayerMixin:
    if site is None or not site.prunes:
        return DynamicLayer()
    kv_heads = getattr(getattr(module, "config", None), "num_key_value_heads", None) or site.layer_mask.heads
    return PrunedLayer(site, kv_heads)


def _nbytes(layer: CacheLayerMixin) -> int:
    if isinstance(layer, PrunedLayer):
        return layer.nbytes
    return layer.keys.nbytes + layer.values.nbytes if layer.is_initialized else 0


def _keys_needed(layer: CacheLayerMixin, rows: int) -> Tensor:
    """int64 [Q]"""
    if not isinstance(layer, PrunedLayer):
        return torch.arange(1, rows + 1)
    column_GK = torch.arange(rows).expand(layer.kv_heads, -1)
    last_GK = layer.last_rows.of(column_GK[None].to(layer.last_rows.table_GK.device))[0].cpu().clamp(max=rows)
    # A key comes with its own row, and counts after rows from there to before the last that needs it.
    change = torch.zeros(layer.kv_heads, rows + 1, dtype=torch.int64)
    stays = last_GK > column_GK
    change.scatter_add_(1, column_GK, stays.long())
    change.scatter_add_(1, torch.where(stays, last_GK, column_GK), -stays.long())
    return change.cumsum(1)[:, :rows].amax(0)
