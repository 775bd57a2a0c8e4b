# Texts, and n-gram baselines on them.
rule corpus:
    output:
        description=f"{CORPUS}/corpus.json",
        vocabulary=f"{CORPUS}/vocabulary.txt",
        train=f"{CORPUS}/train.npy",
        valid=f"{CORPUS}/valid.npy",
        test=f"{CORPUS}/test.npy",
        record=f"{CORPUS}/run.json",
    log:
        f"{CORPUS}/corpus.log",
    benchmark:
        f"{CORPUS}/corpus.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=f"reproduction.data.language.{LM['dataset']['source']}",
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=dataset_flags(LM["dataset"]),
    message:
        "Prepare the text {wildcards.dataset}"
    shell:
        "python -m {params.module} --out {params.folder:q} {params.flags} > {log:q} 2>&1"


rule kneser_ney:
    input:
        rules.corpus.output,
    output:
        metrics=f"{NGRAM}/metrics.json",
        record=f"{NGRAM}/run.json",
    log:
        f"{NGRAM}/kneser_ney.log",
    benchmark:
        f"{NGRAM}/kneser_ney.benchmark.tsv"
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


rule pairs:
    output:
        description=f"{PAIRS}/pairs.json",
        record=f"{PAIRS}/run.json",
        text=expand(f"{PAIRS}/{{split}}.{{language}}", split=SPLITS, language=languages(), allow_missing=True),
        subwords=expand(
            f"{PAIRS}/subwords/{{split}}.{{language}}", split=SPLITS, language=languages(), allow_missing=True
        ),
    log:
        f"{PAIRS}/pairs.log",
    benchmark:
        f"{PAIRS}/pairs.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=f"reproduction.data.translation.{MT['dataset']['source']}",
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=pairs_flags,
    message:
        "Prepare the sentence pairs {wildcards.dataset}"
    shell:
        "python -m {params.module} --out {params.folder:q} {params.flags} > {log:q} 2>&1"


rule copy_source:
    # The baseline of translation: the source, copied.
    input:
        rules.pairs.output,
    output:
        metrics=f"{COPY}/metrics.json",
        record=f"{COPY}/metrics.run.json",
    log:
        f"{COPY}/copy.log",
    benchmark:
        f"{COPY}/copy.benchmark.tsv"
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
