# Language modelling: folders, flags and the files that its figure needs. No rules here.
LM_FOLDER = folder_of("language_modelling")
CORPUS = f"{LM_FOLDER}/corpus"
# Of bigrams, which have no number, and of 5-grams.
NGRAM = f"{LM_FOLDER}/kneser-ney{{order}}"
ORDERS = ["", "-5"]
LM_RUN = f"{LM_FOLDER}/{RUN}".replace("{sites}", "")
LM_DENSE = f"{LM_FOLDER}/{DENSE}"


wildcard_constraints:
    order="|".join(ORDERS),


def ngram_flags(wildcards):
    """Flags of the counting of n-grams."""
    return flags({"order": int(wildcards.order.removeprefix("-"))} if wildcards.order else {})


def corpus_folder(wildcards):
    """The prepared text of a run."""
    return CORPUS.format(**wildcards)


def language_model_flags(wildcards):
    """Flags of train.py about model and optimisation.

    Variant dropout drops as much attention as tau says instead of pruning it, dense-longer has twice as many updates.
    """
    options = {**LM["model"], **LM["training"], "device": job_resource("device")}
    if wildcards.variant == "dropout":
        options["dropatt"] = float(wildcards.tau)
    if wildcards.variant == "dense-longer":
        options |= twice(options, ("max_step",))
    return flags(options)


def language_model_mask(wildcards):
    """The mask of a sparse training; a dense one has none."""
    return [] if wildcards.variant in UNPRUNED else f"{LM_RUN}/mask.safetensors".format(**wildcards)


def second_evaluation():
    """Lengths of the second evaluation of dense models; what it leaves open is the model's."""
    given = {name: LM["dense_evaluation"][name] for name in ("tgt_len", "mem_len")}
    return {name: LM["model"][name] if value is None else value for name, value in given.items()}


def evaluation_flags(wildcards):
    """Flags of an evaluation: the one that all models share, or the second one of the dense models."""
    options = LM["dense_evaluation"] if wildcards.lengths else LM["evaluation"]
    return flags({**options, "device": job_resource("device")})


def language_modelling_metrics():
    """Every metrics file of the experiment."""
    dataset = LM["dataset"]["name"]
    known = {"config": config["name"], "dataset": dataset}
    files = [f"{NGRAM}/metrics.json".format(order=order, **known) for order in ORDERS]
    files += model_files("language_modelling", dataset, models("language_modelling"), "metrics.json")
    if LM["dense_evaluation"]:
        second = "metrics@{tgt_len}-{mem_len}.json".format(**second_evaluation())
        files += model_files("language_modelling", dataset, [("dense", 0)], second)
    return files


LANGUAGE_MODELLING_METRICS = language_modelling_metrics()


def language_model_masks():
    """(variant, tau) of the masks that the language model is timed under: blocks, and the published cells."""
    own = LM["efficiency"]
    return [
        (variant, tau) for variant in ("data", *(f"block{size}" for size in own["block_sizes"])) for tau in own["taus"]
    ]


# The models of the first seed are timed; quality costs a training each, so it may be known at fewer shares.
LM_EFFICIENCY_MASKS = [
    f"{LM_RUN}/mask.safetensors".format(
        config=config["name"],
        dataset=LM["dataset"]["name"],
        variant=variant,
        tau=f"{tau:g}",
        seed=LM["seeds"][0],
    )
    for variant, tau in language_model_masks()
]
LM_EFFICIENCY_METRICS = model_files(
    "language_modelling",
    LM["dataset"]["name"],
    [("dense", 0), *(found for found in language_model_masks() if found[1] in LM["efficiency"]["quality_taus"])],
    "metrics.json",
)


def language_model_timing_flags(wildcards):
    """Flags of the timing."""
    own = LM["efficiency"]
    return flags(
        {**{name: own[name] for name in ("batch_size", "contexts", "rounds")}, "device": job_resource("device")}
    )
