# What the rules share: folders, the runs of the configuration, flags. No rules here.
import os
import shlex
import sys

# Jobs use the interpreter that runs Snakemake, activated or not, and find this repository's packages in any environment.
os.environ.update(
    PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    PYTHONPATH=os.pathsep.join(filter(None, [str(workflow.basedir), os.environ.get("PYTHONPATH")])),
)

LM = config["language_modelling"]
LM_FOLDER = "runs/{config}/language_modelling/{dataset}"
CORPUS = f"{LM_FOLDER}/corpus"
BIGRAM = f"{LM_FOLDER}/kneser-ney"
RUN = f"{LM_FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}"
DENSE = f"{LM_FOLDER}/dense/tau0/seed{{seed}}"


wildcard_constraints:
    config=config["name"],
    dataset=LM["dataset"]["name"],
    variant="dense|data|random|window",
    tau=r"[0-9.]+",
    seed=r"\d+",


def job_resource(name):
    """One of the configuration's resources, for a job that runs a model."""
    return config["resources"][name]


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


def figure_caption():
    """The caption that is written beside the figure. Absolute, as a report looks for captions beside the rules."""
    return str(Path("results", config["name"], "ap_figure.md").absolute())


def labels(**known):
    """Labels that a script copies into metrics.json."""
    return shlex.join(word for key, value in known.items() for word in ("--label", f"{key}={value}"))


def corpus_folder(wildcards):
    """The prepared text of a run."""
    return CORPUS.format(**wildcards)


def corpus_flags():
    """Flags of the module that prepares the text."""
    dataset = LM["dataset"]
    options = dict(dataset[dataset["source"]])
    if dataset["source"] == "wikitext" and config["data_dir"]:
        # A shell leaves the ~ of `--config data_dir=~/data` as it is.
        options["data_dir"] = os.path.expanduser(config["data_dir"])
    return flags(options, dashes=True)


def mask_flags():
    """Flags of a data-informed mask. The published rule takes the whole array of a Transformer-XL, hence no crop."""
    names = ("rule", "scope", "row_floor", "block_size")
    return flags({**{name: LM["pruning"][name] for name in names}, "no_crop": True}, dashes=True)


def training_mask(wildcards):
    """The mask of a sparse training; a dense one has none."""
    return [] if wildcards.variant == "dense" else f"{RUN}/mask.safetensors".format(**wildcards)


def second_evaluation():
    """Lengths of the second evaluation of dense models; what it leaves open is the model's."""
    given = {name: LM["dense_evaluation"][name] for name in ("tgt_len", "mem_len")}
    return {name: LM["model"][name] if value is None else value for name, value in given.items()}


def evaluation_flags(wildcards):
    """Flags of an evaluation: the one that all models share, or the second one of the dense models."""
    options = LM["dense_evaluation"] if wildcards.lengths else LM["evaluation"]
    return flags({**options, "device": job_resource("device")})


def run_labels(wildcards):
    """Labels of an evaluation. A dense model has no rule and no blocks."""
    known = {name: value for name, value in wildcards.items() if name != "lengths"}
    if wildcards.variant != "dense":
        known |= {name: LM["pruning"][name] for name in ("rule", "block_size")}
    return labels(experiment="language_modelling", sites="self", **known)


def language_modelling_runs():
    """(variant, tau) of every model of the configuration, dense first."""
    pruning = LM["pruning"]
    controls = [(variant, tau) for variant in pruning["controls"] for tau in pruning["control_taus"]]
    return [("dense", 0), *(("data", tau) for tau in pruning["taus"]), *controls]


def language_modelling_metrics():
    """Every metrics file of the experiment."""
    known = {"config": config["name"], "dataset": LM["dataset"]["name"]}
    files = [f"{BIGRAM}/metrics.json".format(**known)]
    for variant, tau in language_modelling_runs():
        names = ["metrics.json"]
        if variant == "dense" and LM["dense_evaluation"]:
            names.append("metrics@{tgt_len}-{mem_len}.json".format(**second_evaluation()))
        for seed in LM["seeds"]:
            folder = RUN.format(variant=variant, tau=f"{tau:g}", seed=seed, **known)
            files += [f"{folder}/{name}" for name in names]
    return files


LANGUAGE_MODELLING_METRICS = language_modelling_metrics()
