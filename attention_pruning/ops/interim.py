from dataclasses import replace
from types import SimpleNamespace

from .cpu import native
from .empty_rows import fill_empty_rows


def attend(call, layout):
    c = call.expanded()
    assert not call.query_offset
    s = SimpleNamespace(
        q=c.q,
        k=c.k,
        v=c.v,
        layout=replace(layout, causal=False),
        causal=c.causal,
        key_seen=None if c.key_padding_mask is None else ~c.key_padding_mask,
        bias=c.bias,
        scale=c.scale,
        dropout_p=c.dropout_p,
        dropout_seed=0 if c.dropout_seed is None else int(c.dropout_seed),
    )
    out, empty = native.attend(s)
    return fill_empty_rows(call, out, empty) if empty.any() else out


def refusal(call):
    if call.v.shape[-1] != call.q.shape[-1]:
        return f"values of the size of the queries, {call.q.shape[-1]}, found {call.v.shape[-1]}"
    if call.query_offset:
        return "no offset"
    return native.refusal(call)
