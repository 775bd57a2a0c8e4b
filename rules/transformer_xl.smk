# dense training -> pattern -> mask -> sparse training -> evaluation; every seed is an experiment of its own.
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
    benchmark:
        f"{LM_RUN}/train.benchmark.tsv"
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
    benchmark:
        f"{LM_DENSE}/pattern.benchmark.tsv"
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
    benchmark:
        f"{LM_RUN}/evaluate{{lengths}}.benchmark.tsv"
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
    benchmark:
        f"{LM_FOLDER}/efficiency.benchmark.tsv"
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
