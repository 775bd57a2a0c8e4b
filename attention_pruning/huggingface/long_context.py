"""What users of long contexts look at: perplexity against the position, and whether a pass key is found.

Letters in names: B batch, L tokens of a sequence, V vocabulary.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from ..errors import InputError

#: Rows of logits whose losses are computed at once: a copy of them in float32 is all that it takes.
_ROWS = 1024
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
NEEDLE = "The pass key is {key}. Remember it. {key} is the pass key. "
QUESTION = "What is the pass key? The pass key is"


def perplexity_by_position(
    model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]], width: int = 128
) -> list[dict[str, float]]:
    """The perplexity of a causal language model at each stretch of positions.

    A model that profits from a long context has a falling curve; one that cannot use positions beyond those it was
    trained at has a rising one.

    Parameters
    ----------
    model : PreTrainedModel
        Causal; dense or pruned. Left in the mode that it was in.
    batches : iterable of mappings
        ``input_ids`` [B, L], and an ``attention_mask`` where there is padding.
    width : int
        Positions of a stretch. The position of a token is the number of real tokens before it.

    Returns
    -------
    list of dict
        One for each stretch: ``first`` and ``last`` position that is predicted, ``tokens``, ``nll`` (nats a token) and
        ``perplexity``.

    Raises
    ------
    InputError
        For a width below 1, batches without input_ids, or none in which a token is predicted.
    """
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise InputError(f"width: expected a whole number of at least 1, found {width!r}")
    totals: dict[int, list[float]] = {}
    was_training = model.training
    model.eval()
    try:
        for batch in batches:
            for stretch, nll in _losses(model, batch, width):
                number, total = totals.setdefault(stretch, [0, 0.0])
                totals[stretch] = [number + len(nll), total + float(nll.double().sum())]
    finally:
        model.train(was_training)
    if not totals:
        raise InputError("batches: expected sequences of at least 2 tokens, found none")
    rows = []
    for stretch, (number, total) in sorted(totals.items()):
        mean = total / number
        rows.append(
            {
                "first": max(1, stretch * width),
                "last": (stretch + 1) * width - 1,
                "tokens": number,
                "nll": mean,
                "perplexity": math.exp(mean) if mean < 700 else math.inf,
            }
        )
    return rows


def _losses(model: PreTrainedModel, batch: Mapping[str, Tensor], width: int) -> Iterable[tuple[int, Tensor]]:
    """Each stretch of positions with the losses of the tokens that stand there."""
    ids_BL = batch.get("input_ids") if isinstance(batch, Mapping) else None
    if not isinstance(ids_BL, Tensor) or ids_BL.ndim != 2:
        raise InputError("batches: expected mappings with input_ids [batch, token], found something else")
    inputs = {name: x.to(model.device) for name, x in batch.items() if name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        logits_BLV = model(**inputs).logits[:, :-1]
    real_BL = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
    counts_BL = real_BL[:, 1:] & real_BL[:, :-1]
    target, position = inputs["input_ids"][:, 1:][counts_BL], (real_BL.cumsum(1) - 1)[:, 1:][counts_BL]
    rows = logits_BLV[counts_BL]
    nll = torch.cat(
        [
            F.cross_entropy(some.float(), right, reduction="none")
            for some, right in zip(rows.split(_ROWS), target.split(_ROWS), strict=True)
        ]
        or [rows.new_zeros(0)]
    )
    stretch = position // width
    for number in stretch.unique().tolist():
        yield number, nll[stretch == number]


def passkey(
    model: PreTrainedModel,
    encode: Callable[[str], Sequence[int]],
    lengths: Sequence[int],
    depths: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
    *,
    trials: int = 5,
    seed: int = 0,
    filler: str = FILLER,
    needle: str = NEEDLE,
    question: str = QUESTION,
) -> list[dict[str, float]]:
    """How often a model says the pass key that a long text told it, by the text's length and where in it the key stood.

    The answer counts if every token of it is the model's first choice after the tokens before it: what greedy
    generation would give, in one forward pass.

    Parameters
    ----------
    model : PreTrainedModel
        Causal; dense or pruned. Left in the mode that it was in.
    encode : callable
        From text to token ids, without special tokens, such as
        ``lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]``.
    lengths : sequence of int
        Tokens of the whole prompt, answer included.
    depths : sequence of float
        Where the key is told: 0 at the beginning, 1 right before the question.
    trials : int
        Keys for each length and depth, five digits each.
    seed : int
        Of the keys.
    filler, needle, question : str
        The text around, what tells the key (with ``{key}``), and what asks for it.

    Returns
    -------
    list of dict
        ``length``, ``depth``, ``trials`` and ``found``, the share of trials that were answered.

    Raises
    ------
    InputError
        For a depth outside [0, 1], no trials, or a length that the needle and the question do not fit into.
    """
    if trials < 1:
        raise InputError(f"trials: expected at least 1, found {trials}")
    if wrong := [depth for depth in depths if not 0 <= depth <= 1]:
        raise InputError(f"depths: expected numbers between 0 and 1, found {wrong[0]}")
    draw = random.Random(seed)
    keys = [str(draw.randint(10_000, 99_999)) for _ in range(trials)]
    was_training = model.training
    model.eval()
    rows = []
    try:
        for length in lengths:
            for depth in depths:
                right = sum(_says(model, *prompt(encode, key, length, depth, filler, needle, question)) for key in keys)
                rows.append({"length": length, "depth": depth, "trials": trials, "found": right / trials})
    finally:
        model.train(was_training)
    return rows


def prompt(
    encode: Callable[[str], Sequence[int]],
    key: str,
    length: int,
    depth: float,
    filler: str = FILLER,
    needle: str = NEEDLE,
    question: str = QUESTION,
) -> tuple[list[int], int]:
    """Token ids of a text that tells a key and asks for it, the answer included, and how many tokens the answer has.

    Raises
    ------
    InputError
        If the needle, the question and the answer do not fit into the length.
    """
    told, asked = list(encode(needle.format(key=key))), list(encode(question))
    answer = list(encode(f"{question} {key}"))[len(asked) :]
    if not answer:
        raise InputError("question: expected text after which the key has tokens of its own, found none")
    room = length - len(told) - len(asked) - len(answer)
    if room < 0:
        raise InputError(
            f"length: expected room for needle, question and answer, {length - room} tokens, found {length}"
        )
    text = list(encode(filler))
    around = (text * (room // max(1, len(text)) + 1))[:room]
    before = round(depth * room)
    return [*around[:before], *told, *around[before:], *asked, *answer], len(answer)


def _says(model: PreTrainedModel, ids: Sequence[int], answer: int) -> bool:
    ids_1L = torch.tensor([ids], device=model.device)
    with torch.no_grad():
        chosen = model(input_ids=ids_1L, attention_mask=torch.ones_like(ids_1L)).logits[0, -answer - 1 : -1].argmax(-1)
    return torch.equal(chosen, ids_1L[0, -answer:])
