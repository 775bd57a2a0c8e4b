# What the rules of all experiments share: folders, flags, labels. No rules here.
import json
import os
import re
import shlex
import sys

from snakemake.exceptions import WorkflowError

# Jobs use the interpreter that runs Snakemake, activated or not, and find this repository's packages in any environment.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    PYTHONPATH=os.pathsep.join(filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")])),
)

# glibc gives large tensors back to the system as soon as they are freed, and every page of the next one faults anew: in translation a
# quarter of a training's time on a CPU went there. Results do not change; other C libraries do not know these names.
for name, value in {"MMAP_THRESHOLD": 2**25, "TRIM_THRESHOLD": 2**29, "TOP_PAD": 2**25}.items():
    os.environ.setdefault(f"MALLOC_{name}_", str(value))

# Jobs with a GPU that run at the same time on one machine take one each (reproduction/runs/device_pool.py).
os.environ.pop("AP_DEVICES", None)
gpus = workflow.global_resources.get("gpu").value
if config["resources"]["gpu"] and isinstance(gpus, int) and gpus > 1:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(gpus))))
    if len(visible.split(",")) < gpus:
        raise WorkflowError(
            f"CUDA_VISIBLE_DEVICES: expected {gpus} devices for --resources gpu={gpus}, found {visible}"
        )
    os.environ.update(AP_DEVICES=",".join(visible.split(",")[:gpus]))

# Every script that reads local data looks there by default, the archives of IWSLT14 and WMT17 included.
if config["data_dir"]:
    os.environ.update(AP_DATA_DIR=os.path.expanduser(config["data_dir"]))
LM, MT = config["language_modelling"], config["translation"]
GLUE, SQUAD = config["glue"], config["squad"]
EXPERIMENTS = config["experiments"]


def fewer_pairs(fraction):
    """What the data set of translation is called where only a share of its training pairs is there."""
    return f"{MT['dataset']['name']}-{fraction:g}"


# Where the runs of an experiment are, and within that a model, and the dense model that it was made from.
FOLDER = "runs/{config}/{experiment}/{dataset}"
RUN = "{variant}{sites}/tau{tau}/seed{seed}"
DENSE = "dense/tau0/seed{seed}"
DATASETS = [
    LM["dataset"]["name"],
    MT["dataset"]["name"],
    *map(fewer_pairs, MT["pairs_comparison"]["fractions"]),
    *config["glue"]["dataset"]["tasks"],
    config["squad"]["dataset"]["name"],
]

# The models that nothing is pruned from, and controls that train them in another way.
DENSE_VARIANTS = ("dense", "entmax-dense")
UNPRUNED = (*DENSE_VARIANTS, "dropout", "dense-longer")

# A data-informed mask of another rule and scope than the experiment's.
CHOICE = "(published|allowed)-(layer|head|row|model)"

# Sites of attention in translation; elsewhere there is one, which paths do not name.
SITES = ["enc-self", "dec-self", "enc-dec"]


wildcard_constraints:
    config=config["name"],
    experiment="language_modelling|translation|glue|squad",
    dataset="|".join(DATASETS),
    variant=rf"dense|data|random|window|distance|window-sinks|distance-sinks|shuffled-heads|other-seed|dropout|dense-longer"
    rf"|block\d*|entmax-dense|entmax-data|{CHOICE}",
    # The only site that is pruned, in the name of a model; the site of a pattern or mask.
    sites=f"(@({'|'.join(SITES)}))?",
    site=f"(-({'|'.join(SITES)}))?",
    tau=r"[0-9.]+",
    seed=r"\d+",


def folder_of(experiment):
    """The folder of one experiment's runs, with the wildcards config and dataset."""
    return FOLDER.replace("{experiment}", experiment)


def job_resource(name):
    """One of the configuration's resources, for a job that runs a model."""
    return config["resources"][name]


def job_runtime(kind):
    """Minutes that a job of a kind may take; what a cluster reserves."""
    return config["resources"]["runtime"][kind]


def script(path):
    """A file of this repository, as seen from the working directory."""
    return os.path.relpath(Path(workflow.basedir) / path)


def flags(options, dashes=False):
    """A mapping as command-line flags: true is the bare flag; false, null and an empty list are none."""
    words = []
    for name, value in options.items():
        if value is None or value is False or value == []:
            continue
        words.append("--" + (name.replace("_", "-") if dashes else name))
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return shlex.join(words)


def twice(options, names):
    """Those of the options that say how long a training is, doubled."""
    return {name: 2 * options[name] for name in names if options.get(name) is not None}


def labels(**known):
    """Labels that a script copies into metrics.json."""
    return shlex.join(word for key, value in known.items() for word in ("--label", f"{key}={value}"))


def run_labels(wildcards, experiment, sites):
    """Labels of a model's evaluation. A dense model has no rule and no blocks."""
    known = {name: wildcards[name] for name in ("config", "dataset", "variant", "tau", "seed")}
    if wildcards.variant not in UNPRUNED:
        known |= {**rule_and_scope(wildcards.variant, experiment), "block_size": block_size(wildcards, experiment)}
        # Metrics without a scope mean "layer". To say so, too, would have every model that there is evaluated again.
        if known["scope"] == "layer":
            del known["scope"]
    return labels(experiment=experiment, sites=sites, **known)


def block_size(wildcards, experiment):
    """Side of the blocks that a mask prunes: variant block has those of the efficiency table, block16 those of 16."""
    own, variant = config[experiment], wildcards.get("variant", "")
    if named := re.fullmatch(r"block(\d+)", variant):
        return int(named[1])
    return own["efficiency" if variant == "block" else "pruning"]["block_size"]


def rule_and_scope(variant, experiment):
    """Rule and scope of a mask: those in the variant's name, or else the experiment's."""
    names = ("rule", "scope")
    if re.fullmatch(CHOICE, variant):
        return dict(zip(names, variant.split("-"), strict=True))
    return {name: config[experiment]["pruning"][name] for name in names}


def dense_of(variant):
    """The dense variant whose pattern a sparse one is pruned by."""
    return "entmax-dense" if variant.startswith("entmax-") else "dense"


def models(experiment):
    """(variant, tau) of every model of an experiment, dense first."""
    pruning = config[experiment]["pruning"]
    control_taus = pruning["taus" if config["controls_at_every_tau"] else "control_taus"]
    controls = [(variant, tau) for variant in pruning["controls"] for tau in control_taus]
    return [("dense", 0), *(("data", tau) for tau in pruning["taus"]), *controls]


def model_files(experiment, dataset, chosen, name, sites=""):
    """A file of each of the (variant, tau) chosen, for every seed: models are compared seed by seed."""
    known = {"config": config["name"], "experiment": experiment, "dataset": dataset, "sites": sites}
    return [
        f"{FOLDER}/{RUN}/{name}".format(variant=variant, tau=f"{tau:g}", seed=seed, **known)
        for variant, tau in chosen
        for seed in config[experiment]["seeds"]
    ]
