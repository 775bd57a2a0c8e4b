# Transformer-XL: dense training -> pattern -> mask -> sparse training -> evaluation; every seed is an experiment of its own.
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


rule kneser_ney:
    input:
        rules.corpus.output,
    output:
        metrics=f"{NGRAM}/metrics.json",
        record=f"{NGRAM}/run.json",
    log:
        f"{NGRAM}/kneser_ney.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        folder=corpus_folder,
        flags=ngram_flags,
        labels=lambda wildcards: labels(
            experiment="language_modelling", config=wildcards.config, dataset=wildcards.dataset
        ),
    message:
        "Count n-grams of {wildcards.dataset}: kneser-ney{wildcards.order}"
    shell:
        "python -m reproduction.scores.ngram --data {params.folder:q} --out {output.metrics:q} {params.flags} {params.labels}"
        " > {log:q} 2>&1"


rule train_language_model:
    # Training has a folder of its own, training/: Snakemake deletes the outputs of a job that was interrupted, and the checkpoint and
    # the best weights so far must outlive that, so that the next attempt continues from them.
    input:
        corpus=rules.corpus.output,
        mask=language_model_mask,
    output:
        model=f"{LM_RUN}/model.safetensors",
        record=f"{LM_RUN}/run.json",
    log:
        f"{LM_RUN}/train.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("language_modelling"),
    params:
        script=script("transformer-xl/train.py"),
        corpus=corpus_folder,
        work=lambda wildcards, output: f"{os.path.dirname(output.model)}/training",
        flags=language_model_flags,
        mask=lambda wildcards, input: flags({"fn": input.get("mask")}),
    message:
        "Train a language model: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} ({log})"
    shell:
        "python {params.script:q} --data {params.corpus:q} --work_dir {params.work:q} --set_aside"
        " --seed {wildcards.seed} --threads {threads} {params.flags} {params.mask} > {log:q} 2>&1\n"
        "cp {params.work:q}/model.safetensors {output.model:q}\n"
        "cp {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"


rule average_language_model:
    input:
        corpus=rules.corpus.output,
        model=f"{LM_DENSE}/model.safetensors",
    output:
        pattern=f"{LM_DENSE}/pattern.safetensors",
        record=f"{LM_DENSE}/pattern.run.json",
    log:
        f"{LM_DENSE}/pattern.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("averaging"),
    params:
        script=script("transformer-xl/compute_mask.py"),
        corpus=corpus_folder,
        flags=flags({**LM["pattern"], "device": job_resource("device")}),
    message:
        "Average the attention of a language model: dense, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.corpus:q} --out {output.pattern:q}"
        " --threads {threads} {params.flags} > {log:q} 2>&1"


rule evaluate_language_model:
    input:
        corpus=rules.corpus.output,
        model=f"{LM_RUN}/model.safetensors",
    output:
        metrics=f"{LM_RUN}/metrics{{lengths}}.json",
        record=f"{LM_RUN}/metrics{{lengths}}.run.json",
    log:
        f"{LM_RUN}/evaluate{{lengths}}.log",
    wildcard_constraints:
        lengths=r"(@\d+-\d+)?",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("transformer-xl/eval.py"),
        corpus=corpus_folder,
        flags=evaluation_flags,
        labels=lambda wildcards: run_labels(wildcards, "language_modelling", "self"),
    message:
        "Evaluate a language model: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed} {wildcards.lengths}"
    shell:
        "python {params.script:q} --checkpoint {input.model:q} --data {params.corpus:q} --out {output.metrics:q}"
        " --threads {threads} {params.flags} {params.labels} > {log:q} 2>&1"
