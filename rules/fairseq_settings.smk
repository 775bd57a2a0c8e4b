# Translation: folders, flags and the files that its figures need. No rules here.
MT_FOLDER = folder_of("translation")
PAIRS = f"{MT_FOLDER}/pairs"
BINARISED = f"{MT_FOLDER}/binarised"
COPY = f"{MT_FOLDER}/copy"
MT_RUN = f"{MT_FOLDER}/{RUN}"
# Dense with one normaliser or the other: a wildcard, unlike in other experiments.
MT_DENSE = f"{MT_FOLDER}/{{variant}}/tau0/seed{{seed}}"

# How the scripts in fairseq/ call the sites: compute_attn_score.py --attn_type, and the flags of train.py.
ATTENTION_TYPES = {"enc-self": "self-enc", "dec-self": "self-dec", "enc-dec": "enc-dec"}
SITE_FLAGS = {
    "enc-self": ("PRUNE_ENC_SELF_ATTN", "ENCODER_SELF_ATTN_PATH"),
    "dec-self": ("PRUNE_DEC_SELF_ATTN", "DECODER_SELF_ATTN_PATH"),
    "enc-dec": ("PRUNE_ENC_DEC_ATTN", "ENCODER_DECODER_ATTN_PATH"),
}
# How generate.py turns subwords into running text again.
DETOKENISATION = {
    "bible_pairs": "--remove-bpe sentencepiece",
    "bible_de_en": "--remove-bpe sentencepiece",
    "multi30k": "--remove-bpe sentencepiece",
    "iwslt14": "--remove-bpe --tokenizer moses",
    "wmt17": "--remove-bpe --tokenizer moses",
}


def languages():
    """Source and target language, as file endings."""
    source = MT["dataset"]["source"]
    options = MT["dataset"][source]
    return {
        "bible_pairs": lambda: (options["source"], options["target"]),
        "bible_de_en": lambda: ("de", "en") if options["source"] == "de" else ("en", "de"),
        "multi30k": lambda: ("de", "en") if options["source"] == "de" else ("en", "de"),
        "iwslt14": lambda: ("de", "en"),
        "wmt17": lambda: ("en", "de"),
    }[source]()


SOURCE_LANGUAGE, TARGET_LANGUAGE = languages()
SPLITS = ["train", "valid", "test"]


def pairs_folder(wildcards):
    """The prepared sentence pairs of a run."""
    return PAIRS.format(**wildcards)


def pairs_flags(wildcards):
    """Flags of the module that prepares the pairs: all that the data set has, or the share in its name."""
    dataset, source = MT["dataset"], MT["dataset"]["source"]
    for fraction in MT["pairs_comparison"]["fractions"]:
        if wildcards.dataset == fewer_pairs(fraction):
            share = fraction * dataset[source]["pairs_fraction"]
            return dataset_flags({**dataset, source: {**dataset[source], "pairs_fraction": share}})
    return dataset_flags(dataset)


def binarised_folder(wildcards):
    """The same as fairseq reads them."""
    return BINARISED.format(**wildcards)


def fairseq_device(gpu_flag=""):
    """The flag of fairseq's commands that chooses where they run; auto is none."""
    return {"cpu": "--cpu", "cuda": gpu_flag, "auto": ""}[job_resource("device")]


def averaging_device():
    """The flag of compute_attn_score.py that chooses where it runs."""
    return {"cpu": "--no-cuda", "cuda": "--cuda", "auto": ""}[job_resource("device")]


def translation_model_flags(wildcards):
    """Flags of train.py about model and optimisation; the architecture is the plug-in's twin of fairseq's.

    Variant dropout drops as much attention as tau says instead of pruning it, dense-longer has twice as many updates.
    """
    model = {**MT["model"], "arch": f"ap_{MT['model']['arch']}"}
    training = {"optimizer": "adam", "criterion": "label_smoothed_cross_entropy", **MT["training"]}
    if wildcards.variant == "dropout":
        model["attention_dropout"] = float(wildcards.tau)
    if wildcards.variant == "dense-longer":
        training |= twice(training, ("max_update", "total_num_update"))
    return flags({**model, **training}, dashes=True)


def uses_entmax(wildcards):
    """Whether a model attends with entmax instead of softmax."""
    return dense_of(wildcards.variant) == "entmax-dense"


def translation_pattern_flags(wildcards):
    """Flags of compute_attn_score.py: what to observe, and that the model attends with entmax."""
    observed = flags(MT["pattern"], dashes=True)
    return f"{observed} --use_entmax" if uses_entmax(wildcards) else observed


def pruned_sites(wildcards):
    """The sites that a model prunes."""
    if wildcards.variant in UNPRUNED:
        return []
    return [wildcards.sites.removeprefix("@")] if wildcards.sites else SITES


def translation_masks(wildcards):
    """The masks of a sparse training, by site. A model that prunes one site alone takes the mask of that site."""
    run = f"{MT_FOLDER}/{{variant}}/tau{{tau}}/seed{{seed}}".format(**wildcards)
    return [f"{run}/mask-{site}.safetensors" for site in pruned_sites(wildcards)]


def translation_pruning_flags(wildcards, input):
    """The published flags of a sparse training, and of one with entmax; none for a dense one with softmax."""
    options = {"PRUNE_BOOL": True, "beyond": "dense"} if input.masks else {}
    if uses_entmax(wildcards):
        options["USE_ENTMAX"] = True
    for site, mask in zip(pruned_sites(wildcards), input.masks, strict=True):
        switch, path = SITE_FLAGS[site]
        options |= {switch: True, path: mask}
    return flags(options)


def translation_labels(wildcards):
    """Labels of a translation model's scores."""
    return run_labels(wildcards, "translation", wildcards.sites.removeprefix("@") or "all")


def translation_metrics():
    """Every metrics file that the figure needs."""
    dataset = MT["dataset"]["name"]
    copied = f"{COPY}/metrics.json".format(config=config["name"], dataset=dataset)
    return [copied, *model_files("translation", dataset, models("translation"), "metrics.json")]


def translation_site_metrics():
    """Metrics of the models that prune one site alone."""
    chosen = [("data", tau) for tau in MT["site_taus"]]
    dataset = MT["dataset"]["name"]
    return [file for site in SITES for file in model_files("translation", dataset, chosen, "metrics.json", f"@{site}")]


TRANSLATION_METRICS = translation_metrics()
TRANSLATION_SITE_METRICS = translation_site_metrics()
