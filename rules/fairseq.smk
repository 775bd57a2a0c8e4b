# subwords -> dense training -> patterns of three sites -> masks -> sparse training -> translations -> scores.
rule binarise:
    input:
        rules.pairs.output,
    output:
        dictionaries=expand(f"{BINARISED}/dict.{{language}}.txt", language=languages(), allow_missing=True),
        record=f"{BINARISED}/run.json",
    log:
        f"{BINARISED}/binarise.log",
    benchmark:
        f"{BINARISED}/binarise.benchmark.tsv"
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
    benchmark:
        f"{MT_RUN}/train.benchmark.tsv"
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
    benchmark:
        f"{MT_DENSE}/pattern.benchmark.tsv"
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
    benchmark:
        f"{MT_RUN}/translate.benchmark.tsv"
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
    benchmark:
        f"{MT_RUN}/score.benchmark.tsv"
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
