# subwords -> dense training -> patterns of three sites -> masks -> sparse training -> translations -> scores.
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


TRANSLATION_METRICS = translation_metrics()


rule copy_source:
    # The baseline of translation: the source, copied.
    input:
        rules.pairs.output,
    output:
        metrics=f"{COPY}/metrics.json",
        record=f"{COPY}/metrics.run.json",
    log:
        f"{COPY}/copy.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("data"),
    params:
        hypotheses=lambda wildcards: f"{pairs_folder(wildcards)}/test.{SOURCE_LANGUAGE}",
        references=lambda wildcards: f"{pairs_folder(wildcards)}/test.{TARGET_LANGUAGE}",
        labels=lambda wildcards: labels(experiment="translation", variant="copy", **wildcards),
    message:
        "Score the copied source of {wildcards.dataset}"
    shell:
        "python -m reproduction.scores.bleu --hypotheses {params.hypotheses:q} --references {params.references:q}"
        " --out {output.metrics:q} {params.labels} > {log:q} 2>&1"


rule binarise:
    input:
        rules.pairs.output,
    output:
        dictionaries=expand(f"{BINARISED}/dict.{{language}}.txt", language=languages(), allow_missing=True),
        record=f"{BINARISED}/run.json",
    log:
        f"{BINARISED}/binarise.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        script=script("fairseq/preprocess.py"),
        subwords=lambda wildcards: f"{pairs_folder(wildcards)}/subwords",
        folder=binarised_folder,
        languages=f"--source-lang {SOURCE_LANGUAGE} --target-lang {TARGET_LANGUAGE}",
    message:
        "Binarise {wildcards.dataset}"
    shell:
        "python {params.script:q} {params.languages} --joined-dictionary --destdir {params.folder:q}"
        " --trainpref {params.subwords:q}/train --validpref {params.subwords:q}/valid --testpref {params.subwords:q}/test"
        " > {log:q} 2>&1"


rule train_translation:
    # Training has a folder of its own, training/: Snakemake deletes the outputs of a job that was interrupted, and fairseq's
    # checkpoints must outlive that, so that the next attempt continues from the last one. A run of another recipe that was
    # never finished gets the name training.old1.
    input:
        data=rules.binarise.output,
        masks=translation_masks,
    output:
        model=f"{MT_RUN}/checkpoint.pt",
        record=f"{MT_RUN}/run.json",
    log:
        f"{MT_RUN}/train.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("translation"),
    params:
        script=script("fairseq/train.py"),
        data=binarised_folder,
        work=lambda wildcards, output: f"{os.path.dirname(output.model)}/training",
        device=fairseq_device("--CUDA"),
        flags=translation_model_flags,
        pruning=translation_pruning_flags,
        chosen=MT["decoding"]["checkpoint"],
    message:
        "Train a translation model: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed} ({log})"
    shell:
        "python {params.script:q} {params.data:q} --save-dir {params.work:q} --set-aside --no-epoch-checkpoints --no-progress-bar"
        " --seed {wildcards.seed} {params.device} {params.flags} {params.pruning} > {log:q} 2>&1\n"
        "cp {params.work:q}/checkpoint_{params.chosen}.pt {output.model:q}\n"
        "cp {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"


rule average_translation:
    # All three sites in one pass; the patterns get the names by which masks ask for them.
    input:
        data=rules.binarise.output,
        model=f"{MT_DENSE}/checkpoint.pt",
    output:
        patterns=expand(f"{MT_DENSE}/pattern-{{site}}.safetensors", site=SITES, allow_missing=True),
        record=f"{MT_DENSE}/pattern.run.json",
    log:
        f"{MT_DENSE}/pattern.log",
    wildcard_constraints:
        variant="|".join(DENSE_VARIANTS),
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("averaging"),
    params:
        script=script("fairseq/compute_attn_score.py"),
        data=binarised_folder,
        folder=lambda wildcards, input: os.path.dirname(input.model),
        work=lambda wildcards, input: f"{os.path.dirname(input.model)}/avg_attn_probabilities",
        device=averaging_device(),
        flags=translation_pattern_flags,
        renames=" ".join(f"{attention_type}:{site}" for site, attention_type in ATTENTION_TYPES.items()),
    message:
        "Average the attention of a translation model: {wildcards.variant}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --path {params.folder:q} --fn checkpoint.pt --dataset_name {params.data:q} --all"
        " --out {params.work:q} --threads {threads} {params.device} {params.flags} > {log:q} 2>&1\n"
        "for name in {params.renames}; do\n"
        "  mv {params.work:q}/${{name%:*}}.safetensors {params.folder:q}/pattern-${{name#*:}}.safetensors\n"
        "done\n"
        "mv {params.work:q}/run.json {output.record:q}\n"
        "rmdir {params.work:q}"


rule translate:
    input:
        data=rules.binarise.output,
        model=f"{MT_RUN}/checkpoint.pt",
    output:
        translations=f"{MT_RUN}/translations/generate-test.txt",
        record=f"{MT_RUN}/translations/run.json",
    log:
        f"{MT_RUN}/translate.log",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("fairseq/generate.py"),
        data=binarised_folder,
        folder=lambda wildcards, output: os.path.dirname(output.translations),
        device=fairseq_device(),
        flags=flags({name: MT["decoding"][name] for name in ("beam", "lenpen", "max_tokens")}, dashes=True),
        detokenisation=DETOKENISATION[MT["dataset"]["source"]],
    message:
        "Translate: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} {params.data:q} --path {input.model:q} --results-path {params.folder:q}"
        " {params.device} {params.flags} {params.detokenisation} > {log:q} 2>&1"


rule score_translation:
    input:
        pairs=rules.pairs.output,
        data=rules.binarise.output,
        model=f"{MT_RUN}/checkpoint.pt",
        translations=f"{MT_RUN}/translations/generate-test.txt",
    output:
        metrics=f"{MT_RUN}/metrics.json",
        record=f"{MT_RUN}/metrics.run.json",
    log:
        f"{MT_RUN}/score.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("evaluation"),
    params:
        script=script("fairseq/score_translations.py"),
        data=binarised_folder,
        references=lambda wildcards: f"{pairs_folder(wildcards)}/test.{TARGET_LANGUAGE}",
        labels=translation_labels,
    message:
        "Score: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --generated {input.translations:q} --references {params.references:q}"
        " --checkpoint {input.model:q} --data {params.data:q} --out {output.metrics:q} {params.labels} > {log:q} 2>&1"
