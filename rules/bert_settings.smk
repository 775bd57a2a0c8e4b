# GLUE and SQuAD: folders, flags and the files that their figures need. No rules here.
GLUE, SQUAD = config["glue"], config["squad"]
STAND_INS = "runs/{config}/{experiment}/stand-ins"
MAJORITY = f"{folder_of('glue')}/majority"
# Tokenised rows, which all runs of the same data, model and lengths share.
PREPARED = "runs/{config}/{experiment}/prepared"
# Both experiments are the same rules, each with a script of its own.
BERT_RUN = f"{FOLDER}/{RUN}".replace("{sites}", "")
BERT_DENSE = f"{FOLDER}/{DENSE}"
# Sources that a module of reproduction/data writes; others are data folders, or the hub.
WRITTEN_SOURCES = ("bible_glue", "bible_squad")


def stand_ins(wildcards, experiment=None):
    """The folder of the stand-in tasks, if the configuration has them."""
    experiment = experiment or wildcards.experiment
    if config[experiment]["dataset"]["source"] not in WRITTEN_SOURCES:
        return []
    return STAND_INS.format(config=wildcards.config, experiment=experiment)


def stand_in_flags(wildcards):
    """Flags of the module that writes them."""
    return dataset_flags(config[wildcards.experiment]["dataset"])


def task_data_flags(wildcards, input):
    """Where a task's data is; none leaves it to AP_DATA_DIR, or else the hub."""
    folder = config["data_dir"] and os.path.expanduser(config["data_dir"])
    return flags({"data_dir": input.get("stand_ins") or folder})


def bert_script(wildcards):
    """The script of an experiment."""
    return script(f"bert/src/run_{wildcards.experiment}.py")


def bert_device():
    """The flag that chooses where the model runs; auto is none, and takes a GPU if there is one."""
    return {"cpu": "--use_cpu", "cuda": "", "auto": ""}[job_resource("device")]


def task_flags(wildcards):
    """Which task, how long its sequences are, and where they are kept once tokenised."""
    own = config[wildcards.experiment]
    task = {"task_name": wildcards.dataset} if wildcards.experiment == "glue" else {}
    lengths = own.get("task_lengths", {}).get(wildcards.dataset, own["lengths"])
    prepared = {"prepared_dir": PREPARED.format(**wildcards)}
    return f"{flags({**task, **lengths, **prepared})} {bert_device()}"


def finetuning_flags(wildcards):
    """Flags of a training and its evaluation."""
    own = config[wildcards.experiment]
    limits = {name: own["dataset"][name] for name in ("max_train_samples", "max_eval_samples")}
    saving = {"save_strategy": "steps" if own["training"]["save_steps"] else "no", "save_total_limit": 1}
    return flags({**own["model"], **own["training"], **own["evaluation"], **limits, **saving})


def averaging_flags(wildcards):
    """Flags of the averaging of a fine-tuned model's attention, over the text that it was trained on."""
    own = config[wildcards.experiment]
    limits = {"max_train_samples": own["dataset"]["max_train_samples"]}
    return flags({**own["pattern"], **own["evaluation"], **limits})


def bert_mask(wildcards):
    """The mask of a sparse training; a dense one has none."""
    return [] if wildcards.variant == "dense" else f"{BERT_RUN}/mask.safetensors".format(**wildcards)


def bert_pruning_flags(wildcards, input):
    """The published flags of a sparse training; none for a dense one."""
    return flags({"prune": True, "attn_path": input.mask}) if input.get("mask") else ""


def bert_labels(wildcards):
    """Labels of a model's evaluation."""
    return run_labels(wildcards, wildcards.experiment, "self")


def glue_metrics_files():
    """Every metrics file that the figure needs."""
    files = []
    for task in GLUE["dataset"]["tasks"]:
        files.append(f"{MAJORITY}/metrics.json".format(config=config["name"], dataset=task))
        files += model_files("glue", task, models("glue"), "metrics.json")
    return files


GLUE_METRICS = glue_metrics_files()
SQUAD_METRICS = model_files("squad", SQUAD["dataset"]["name"], models("squad"), "metrics.json")


def efficiency_masks():
    """The masks that the efficiency table is timed under, of the first seed."""
    chosen = [("block", tau) for tau in SQUAD["efficiency"]["taus"]]
    known = {"config": config["name"], "dataset": SQUAD["dataset"]["name"], "seed": SQUAD["seeds"][0]}
    path = f"{BERT_RUN}/mask.safetensors"
    return [path.format(experiment="squad", variant=variant, tau=f"{tau:g}", **known) for variant, tau in chosen]


def efficiency_flags(wildcards):
    """Flags of the timing."""
    own = SQUAD["efficiency"]
    shape = {"model_name_or_path": SQUAD["model"]["model_name_or_path"]}
    shape["max_seq_length"] = SQUAD["lengths"]["max_seq_length"]
    return f"{flags(shape | {name: own[name] for name in ('batch_size', 'rounds')})} {bert_device()}"


# Quality costs a training each, seconds and memory do not: so it may be known at fewer shares.
EFFICIENCY_METRICS = model_files(
    "squad",
    SQUAD["dataset"]["name"],
    [("dense", 0), *(("block", tau) for tau in SQUAD["efficiency"]["quality_taus"])],
    "metrics.json",
)
EFFICIENCY_MASKS = efficiency_masks()
