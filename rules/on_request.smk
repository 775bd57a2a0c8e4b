# What is run only if it is asked for: sites alone, entmax, other rules and scopes, fewer pairs, timings.
def translation_site_metrics():
    """Metrics of the models that prune one site alone."""
    chosen = [("data", tau) for tau in MT["site_taus"]]
    dataset = MT["dataset"]["name"]
    return [file for site in SITES for file in model_files("translation", dataset, chosen, "metrics.json", f"@{site}")]


TRANSLATION_SITE_METRICS = translation_site_metrics()


def entmax_models():
    """(variant, tau) of every model in the comparison: softmax, then entmax, each dense and pruned by its own pattern."""
    taus = MT["entmax"]["taus"]
    return [
        *[("dense", 0), *(("data", tau) for tau in taus)],
        *[("entmax-dense", 0), *(("entmax-data", tau) for tau in taus)],
    ]


def entmax_metrics():
    """Scores of each of them, and what its checkpoint shows."""
    names = ("metrics.json", "metrics@checkpoint.json")
    return [file for name in names for file in model_files("translation", MT["dataset"]["name"], entmax_models(), name)]


ENTMAX_METRICS = entmax_metrics()


def comparison_models(experiment):
    """(variant, tau) of every model in the comparison: dense; then by tau data-informed, other choices, controls."""
    own = config[experiment]["mask_comparison"]
    choices = ["{rule}-{scope}".format(**choice) for choice in own["choices"]]
    # The experiment's own rule and scope are those of the variant data, which its figure has already.
    others = [choice for choice in choices if rule_and_scope(choice, experiment) != rule_and_scope("data", experiment)]
    # What is trained twice as long has no tau.
    longer = [("dense-longer", 0)] if "dense-longer" in own["controls"] else []
    variants = ["data", *others, *(control for control in own["controls"] if control != "dense-longer")]
    return [("dense", 0), *longer, *((variant, tau) for tau in own["taus"] for variant in variants)]


# The experiments whose masks are compared.
COMPARED = [
    name
    for name in ("language_modelling", "translation", "glue")
    if name in EXPERIMENTS and config[name]["mask_comparison"]["taus"]
]


def comparison_metrics():
    """Metrics of each of them, language modelling first; of understanding, every task."""
    found = []
    for experiment in COMPARED:
        own = config[experiment]["dataset"]
        for dataset in own.get("tasks") or [own["name"]]:
            found += model_files(experiment, dataset, comparison_models(experiment), "metrics.json")
    return found


COMPARISON_METRICS = comparison_metrics()
PAIRS_COMPARED = MT["pairs_comparison"]


def pairs_comparison_metrics():
    """Scores of each model, of all test sentences and by their length, with all pairs first; and of the copied source."""
    known = {"config": config["name"], "dataset": MT["dataset"]["name"]}
    files = [f"{COPY}/metrics.json".format(**known)]
    chosen = [("dense", 0), *(("data", tau) for tau in PAIRS_COMPARED["taus"])]
    for dataset in (MT["dataset"]["name"], *map(fewer_pairs, PAIRS_COMPARED["fractions"])):
        for name in ("metrics.json", "metrics@length.json"):
            files += model_files("translation", dataset, chosen, name)
    return files


PAIRS_COMPARISON_METRICS = pairs_comparison_metrics()


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


def efficiency_masks():
    """The masks that the efficiency table is timed under, of the first seed."""
    chosen = [("block", tau) for tau in SQUAD["efficiency"]["taus"]]
    known = {"config": config["name"], "dataset": SQUAD["dataset"]["name"], "seed": SQUAD["seeds"][0]}
    path = f"{BERT_RUN}/mask.safetensors"
    return [path.format(experiment="squad", variant=variant, tau=f"{tau:g}", **known) for variant, tau in chosen]


EFFICIENCY_MASKS = efficiency_masks()

# Quality costs a training each, seconds and memory do not: so it may be known at fewer shares.
EFFICIENCY_METRICS = model_files(
    "squad",
    SQUAD["dataset"]["name"],
    [("dense", 0), *(("block", tau) for tau in SQUAD["efficiency"]["quality_taus"])],
    "metrics.json",
)


def efficiency_flags(wildcards):
    """Flags of the timing."""
    own = SQUAD["efficiency"]
    shape = {"model_name_or_path": SQUAD["model"]["model_name_or_path"]}
    shape["max_seq_length"] = SQUAD["lengths"]["max_seq_length"]
    return f"{flags(shape | {name: own[name] for name in ('batch_size', 'rounds')})} {bert_device()}"


rule inspect_translation_model:
    # One pass over the evaluated sentences; a CPU is enough.
    input:
        data=rules.binarise.output,
        model=f"{MT_RUN}/checkpoint.pt",
    output:
        metrics=f"{MT_RUN}/metrics@checkpoint.json",
        record=f"{MT_RUN}/metrics@checkpoint.run.json",
    log:
        f"{MT_RUN}/inspect.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("fairseq/inspect_checkpoint.py"),
        data=binarised_folder,
        labels=translation_labels,
    message:
        "Look into a translation model: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.data:q} --threads {threads}"
        " --out {output.metrics:q} {params.labels} > {log:q} 2>&1"


rule score_by_length:
    input:
        pairs=rules.pairs.output,
        metrics=f"{MT_RUN}/metrics.json",
        translations=f"{MT_RUN}/translations/generate-test.txt",
    output:
        metrics=f"{MT_RUN}/metrics@length.json",
        record=f"{MT_RUN}/metrics@length.run.json",
    log:
        f"{MT_RUN}/score_by_length.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("evaluation"),
    params:
        sources=lambda wildcards: f"{pairs_folder(wildcards)}/test.{SOURCE_LANGUAGE}",
        references=lambda wildcards: f"{pairs_folder(wildcards)}/test.{TARGET_LANGUAGE}",
        flags=flags({"lengths": PAIRS_COMPARED["lengths"]}),
    message:
        "Score by length: {wildcards.dataset}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python -m reproduction.scores.length_scores --hypotheses {input.translations:q} --sources {params.sources:q}"
        " --references {params.references:q} --metrics {input.metrics:q} --out {output.metrics:q} {params.flags} > {log:q} 2>&1"


rule measure_language_model:
    # A timing: let nothing else run beside it where the numbers are to mean something.
    input:
        corpus=rules.corpus.output,
        model=f"{LM_FOLDER}/dense/tau0/seed{LM['seeds'][0]}/model.safetensors",
        masks=LM_EFFICIENCY_MASKS,
    output:
        f"{LM_FOLDER}/efficiency.json",
    log:
        f"{LM_FOLDER}/efficiency.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("transformer-xl/measure_language_model.py"),
        corpus=corpus_folder,
        flags=language_model_timing_flags,
    message:
        "Time the language model under masks"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.corpus:q} --masks {input.masks:q} --out {output:q}"
        " --threads {threads} {params.flags} > {log:q} 2>&1"


rule measure_efficiency:
    # A timing: let nothing else run beside it where the numbers are to mean something.
    input:
        EFFICIENCY_MASKS,
    output:
        f"{folder_of('squad')}/efficiency.json",
    log:
        f"{folder_of('squad')}/efficiency.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=4000,
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("bert/src/measure_efficiency.py"),
        flags=efficiency_flags,
    message:
        "Time inference and training under masks of whole blocks"
    shell:
        "python {params.script:q} --masks {input:q} {params.flags} --threads {threads} --out {output:q} > {log:q} 2>&1"
