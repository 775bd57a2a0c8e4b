"""Make the golden values of the Transformer-XL tests with ``TransfoXLLMHeadModel`` of transformers 4.35.2.

The script needs an environment of its own (README.md beside it says how to make one): that model left transformers with
release 5, so the environment of this repository cannot run it. It writes one safetensors file holding several tiny
models: every weight, three consecutive segments of token ids, and what the oracle predicts for them.
"""

import argparse
import copy
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import TransfoXLConfig, TransfoXLLMHeadModel

ORACLE_VERSION = "4.35.2"
FORMAT = "attention-pruning/golden-transfo-xl/1"
BATCH = 2
SEED = 20201202

# `tie_projs` is written out although the oracle derives it (first projection free, the others tied), so that a reader
# of the fixture needs no knowledge of the oracle's defaults. `segments` are the lengths of the consecutive segments.
CASES: dict[str, dict] = {
    # The memory (12) is never full: 0, 5, 10 slots.
    "plain": {
        "n_token": 29,
        "cutoffs": [11, 19],
        "div_val": 1,
        "d_model": 16,
        "d_embed": 16,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 24,
        "tie_projs": [False, True, True],
        "pre_lnorm": False,
        "same_length": False,
        "clamp_len": -1,
        "mem_len": 12,
        "segments": [5, 5, 5],
    },
    # The heads together (15) are not d_model wide, and a head's width is odd, as in the published base model (10 heads
    # of 41); the memory is cut from 12 to 7 slots.
    "divided": {
        "n_token": 31,
        "cutoffs": [9, 18],
        "div_val": 2,
        "d_model": 12,
        "d_embed": 16,
        "n_layer": 3,
        "n_head": 3,
        "d_head": 5,
        "d_inner": 20,
        "tie_projs": [False, True, True],
        "pre_lnorm": False,
        "same_length": False,
        "clamp_len": -1,
        "mem_len": 7,
        "segments": [6, 6, 6],
    },
    # Every switch of the attention at once; the last segment is short, as the last batch of an evaluation is.
    "prenorm": {
        "n_token": 23,
        "cutoffs": [8, 15],
        "div_val": 1,
        "d_model": 12,
        "d_embed": 12,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 6,
        "d_inner": 16,
        "tie_projs": [False, True, True],
        "pre_lnorm": True,
        "same_length": True,
        "clamp_len": 4,
        "mem_len": 8,
        "segments": [6, 6, 4],
    },
    # Three tail clusters, as in the published base model, and one projection shared by the embedding and all of them;
    # the memory (4) is shorter than a segment.
    "projected": {
        "n_token": 37,
        "cutoffs": [8, 16, 27],
        "div_val": 1,
        "d_model": 14,
        "d_embed": 10,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 7,
        "d_inner": 18,
        "tie_projs": [False, True, True, True],
        "pre_lnorm": False,
        "same_length": False,
        "clamp_len": 3,
        "mem_len": 4,
        "segments": [6, 6, 6],
    },
    # No cutoffs at all: a plain softmax, as for characters.
    "character": {
        "n_token": 13,
        "cutoffs": [],
        "div_val": 1,
        "d_model": 12,
        "d_embed": 12,
        "n_layer": 2,
        "n_head": 2,
        "d_head": 6,
        "d_inner": 16,
        "tie_projs": [False],
        "pre_lnorm": False,
        "same_length": True,
        "clamp_len": -1,
        "mem_len": 6,
        "segments": [5, 5, 5],
    },
}


def build_oracle(case: dict) -> TransfoXLLMHeadModel:
    """Build the oracle for one case, in evaluation mode and float32, its parameters not yet set."""
    config = TransfoXLConfig(
        vocab_size=case["n_token"],
        # The oracle appends the vocabulary's size to the list it is given.
        cutoffs=list(case["cutoffs"]),
        d_model=case["d_model"],
        d_embed=case["d_embed"],
        n_head=case["n_head"],
        d_head=case["d_head"],
        d_inner=case["d_inner"],
        div_val=case["div_val"],
        pre_lnorm=case["pre_lnorm"],
        n_layer=case["n_layer"],
        mem_len=case["mem_len"],
        clamp_len=case["clamp_len"],
        same_length=case["same_length"],
        proj_share_all_but_first=True,
        untie_r=False,
        dropout=0.0,
        dropatt=0.0,
    )
    if config.tie_projs != case["tie_projs"]:
        raise SystemExit(f"error: the oracle ties projections as {config.tie_projs}, expected {case['tie_projs']}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return TransfoXLLMHeadModel(config).float().eval()


def randomise(model: TransfoXLLMHeadModel, random: np.random.RandomState) -> None:
    """Draw every parameter anew, biases and layer norms included, so that no term of the model is trivially 0 or 1.

    numpy's legacy generator is used because its stream is frozen: the fixture does not depend on torch's version.
    """
    for name, parameter in model.named_parameters():
        values = random.standard_normal(tuple(parameter.shape))
        if name.endswith("layer_norm.weight"):
            values = 1 + 0.2 * values
        elif parameter.dim() == 1 or name.endswith("_bias"):
            values = 0.5 * values
        elif "emb_layers" in name:
            # The model multiplies embeddings by sqrt(d_model).
            values = values / np.sqrt(model.config.d_model)
        else:
            values = values / np.sqrt(parameter.shape[-1])
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def draw_tokens(case: dict, random: np.random.RandomState) -> torch.Tensor:
    """Draw token ids int64 (B, sum of segments + 1), every cluster among the targets of every stream."""
    length = sum(case["segments"]) + 1
    edges = [0, *case["cutoffs"], case["n_token"]]
    # The cluster is drawn first, so that the small ones are not left out.
    cluster = random.randint(0, len(edges) - 1, size=(BATCH, length))
    low, high = np.asarray(edges[:-1])[cluster], np.asarray(edges[1:])[cluster]
    tokens = low + (random.random_sample((BATCH, length)) * (high - low)).astype(np.int64)
    for stream in cluster[:, 1:]:
        if len(set(stream.tolist())) != len(edges) - 1:
            raise SystemExit("error: a stream misses a cluster; choose another SEED")
    return torch.from_numpy(tokens)


def check_cluster_order(model: TransfoXLLMHeadModel, hidden_TD: torch.Tensor, log_probs_TV: torch.Tensor) -> None:
    """Check that row i of the cluster parameters belongs to the i-th tail: README.md tells readers to rely on it."""
    crit, cutoffs = model.crit, model.config.cutoffs
    if not cutoffs:
        return
    projected = hidden_TD if crit.out_projs[0] is None else hidden_TD @ crit.out_projs[0]
    weight = torch.cat([crit.out_layers[0].weight[: cutoffs[0]], crit.cluster_weight])
    bias = torch.cat([crit.out_layers[0].bias[: cutoffs[0]], crit.cluster_bias])
    head = torch.log_softmax(projected @ weight.T + bias, dim=-1)
    edges = [*cutoffs, model.config.vocab_size]
    for tail in range(len(cutoffs)):
        mass = torch.logsumexp(log_probs_TV[:, edges[tail] : edges[tail + 1]], dim=-1)
        torch.testing.assert_close(mass, head[:, cutoffs[0] + tail], atol=1e-5, rtol=0)


def make_case(name: str, case: dict, seed: int) -> dict[str, torch.Tensor]:
    """Make the tensors of one case, their names prefixed with the case's name (README.md lists them)."""
    random = np.random.RandomState(seed)
    model = build_oracle(case)
    randomise(model, random)
    tokens = draw_tokens(case, random)

    tensors = {f"{name}/weights/{key}": value.detach().clone() for key, value in model.named_parameters()}
    # An explicit memory of no slots: the oracle's own first memory is made of zeros, which are attended to.
    mems = [torch.zeros(0, BATCH, case["d_model"]) for _ in range(case["n_layer"])]
    start = 0
    for index, length in enumerate(case["segments"]):
        data, target = tokens[:, start : start + length], tokens[:, start + 1 : start + length + 1]
        with torch.no_grad():
            # No `labels`: the oracle would shift them inside the segment and drop its last prediction.
            out = model(data, mems=mems, output_attentions=True, output_hidden_states=True, return_dict=True)
            log_probs = out.prediction_scores
            check_cluster_order(model, out.hidden_states[-1].flatten(0, 1), log_probs.flatten(0, 1))
        torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(BATCH, length), atol=1e-5, rtol=0)
        mems = out.mems
        prefix = f"{name}/segment{index}"
        tensors[f"{prefix}/data"] = data.contiguous()
        tensors[f"{prefix}/target"] = target.contiguous()
        tensors[f"{prefix}/log_probs"] = log_probs.contiguous()
        tensors[f"{prefix}/nll"] = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        tensors[f"{prefix}/attention"] = torch.stack(out.attentions)
        start += length
    return tensors


def make_fixture() -> tuple[dict[str, torch.Tensor], str]:
    """Make all cases: the tensors, and the configurations as a JSON text."""
    tensors: dict[str, torch.Tensor] = {}
    for offset, (name, case) in enumerate(CASES.items()):
        tensors.update(make_case(name, copy.deepcopy(case), SEED + offset))
    oracle = f"transformers {ORACLE_VERSION} TransfoXLLMHeadModel"
    config = {"format": FORMAT, "oracle": oracle, "seed": SEED, "batch": BATCH, "cases": CASES}
    return tensors, json.dumps(config)


def write_fixture(path: Path, tensors: dict[str, torch.Tensor], config: str) -> None:
    """Write the fixture in one piece: a run that fails leaves the old file."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    os.close(handle)
    try:
        # One metadata key only: with several their order in the file would change from run to run.
        save_file(tensors, temporary, metadata={"config": config})
        Path(temporary).chmod(0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def compare_fixture(path: Path, tensors: dict[str, torch.Tensor], config: str) -> float:
    """Compare a fixture on disk with fresh tensors: the largest difference found, in any tensor."""
    with safe_open(path, framework="pt") as stored:
        if json.loads(stored.metadata()["config"]) != json.loads(config):
            raise SystemExit(f"error: {path}: its configurations are not those of this script; make it anew")
        if set(stored.keys()) != set(tensors):
            raise SystemExit(f"error: {path}: its tensors are not those of this script; make it anew")
        difference = 0.0
        for name, fresh in tensors.items():
            old = stored.get_tensor(name)
            if old.shape != fresh.shape or old.dtype != fresh.dtype:
                raise SystemExit(
                    f"error: {path}: {name} is {old.dtype} {tuple(old.shape)}, "
                    f"expected {fresh.dtype} {tuple(fresh.shape)}"
                )
            difference = max(difference, (old.double() - fresh.double()).abs().max().item())
    return difference


def main() -> int:
    """Write the fixture, or with ``--check`` compare the one on disk with a fresh one."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).with_name("transfo_xl.safetensors"),
        help="the fixture to write (or to check)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail if the fixture on disk differs from a fresh one by more than 1e-5",
    )
    args = parser.parse_args()
    if transformers.__version__ != ORACLE_VERSION:
        print(
            f"error: expected transformers {ORACLE_VERSION}, found {transformers.__version__}; see README.md",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(1)
    tensors, config = make_fixture()
    if not args.check:
        write_fixture(args.out, tensors, config)
        print(f"{args.out}: {len(tensors)} tensors, {args.out.stat().st_size} bytes")
        return 0
    if not args.out.is_file():
        print(f"error: {args.out}: no such file", file=sys.stderr)
        return 2
    difference = compare_fixture(args.out, tensors, config)
    print(f"{args.out}: largest difference to a fresh fixture {difference:.1e}")
    return 0 if difference <= 1e-5 else 1


if __name__ == "__main__":
    sys.exit(main())
