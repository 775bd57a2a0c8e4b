# Texts, and what counting words alone makes of them.
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
        "../envs/transformer-xl.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        module=f"reproduction.data.{LM['dataset']['source']}",
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=corpus_flags(),
    message:
        "Prepare the text {wildcards.dataset}"
    shell:
        "python -m {params.module} --out {params.folder:q} {params.flags} > {log:q} 2>&1"


rule kneser_ney:
    input:
        rules.corpus.output,
    output:
        metrics=f"{BIGRAM}/metrics.json",
        record=f"{BIGRAM}/run.json",
    log:
        f"{BIGRAM}/kneser_ney.log",
    benchmark:
        f"{BIGRAM}/kneser_ney.benchmark.tsv"
    conda:
        "../envs/transformer-xl.yaml"
    threads: 1
    resources:
        mem_mb=4000,
    params:
        folder=corpus_folder,
        labels=lambda wildcards: labels(experiment="language_modelling", **wildcards),
    message:
        "Count bigrams of {wildcards.dataset}"
    shell:
        "python -m reproduction.ngram --data {params.folder:q} --out {output.metrics:q} {params.labels} > {log:q} 2>&1"
