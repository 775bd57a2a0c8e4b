# Models out of distribution: other data in the form of the training data, the same evaluations, one table.
rule other_text:
    input:
        rules.corpus.output,
    output:
        description=f"{OTHER_TEXT}/corpus.json",
        vocabulary=f"{OTHER_TEXT}/vocabulary.txt",
        train=f"{OTHER_TEXT}/train.npy",
        valid=f"{OTHER_TEXT}/valid.npy",
        test=f"{OTHER_TEXT}/test.npy",
        record=f"{OTHER_TEXT}/run.json",
    log:
        f"{OTHER_TEXT}/corpus.log",
    benchmark:
        f"{OTHER_TEXT}/corpus.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        trained=corpus_folder,
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=other_data_flags(),
    message:
        "Prepare the text {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m reproduction.data.shifted.text --trained {params.trained:q} --name {wildcards.away} --out {params.folder:q}"
        " {params.flags} > {log:q} 2>&1"


use rule kneser_ney as kneser_ney_away with:
    input:
        rules.other_text.output,
    output:
        metrics=f"{OTHER_NGRAM}/metrics@{{away}}.json",
        record=f"{OTHER_NGRAM}/run.json",
    log:
        f"{OTHER_NGRAM}/kneser_ney.log",
    benchmark:
        f"{OTHER_NGRAM}/kneser_ney.benchmark.tsv"
    params:
        folder=lambda wildcards: OTHER_TEXT.format(**wildcards),
        labels=lambda wildcards: labels(config=wildcards.config, dataset=wildcards.dataset),
    message:
        "Count n-grams of {wildcards.dataset}, and look at {wildcards.away}: kneser-ney{wildcards.order}"


use rule evaluate_language_model as evaluate_language_model_away with:
    input:
        corpus=rules.other_text.output,
        model=f"{LM_RUN}/model.safetensors",
    output:
        metrics=f"{LM_RUN}/metrics@{{away}}.json",
        record=f"{LM_RUN}/metrics@{{away}}.run.json",
    log:
        f"{LM_RUN}/evaluate@{{away}}.log",
    benchmark:
        f"{LM_RUN}/evaluate@{{away}}.benchmark.tsv"
    params:
        corpus=lambda wildcards: OTHER_TEXT.format(**wildcards),
        flags=flags({"split": "test", **LM["evaluation"], "device": job_resource("device")}),
    message:
        "Evaluate a language model on {wildcards.away}: {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"


rule other_pairs:
    input:
        rules.pairs.output,
    output:
        description=f"{OTHER_PAIRS}/pairs.json",
        record=f"{OTHER_PAIRS}/run.json",
        text=expand(f"{OTHER_PAIRS}/test.{{language}}", language=languages(), allow_missing=True),
        subwords=expand(f"{OTHER_PAIRS}/subwords/test.{{language}}", language=languages(), allow_missing=True),
    log:
        f"{OTHER_PAIRS}/pairs.log",
    benchmark:
        f"{OTHER_PAIRS}/pairs.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        trained=pairs_folder,
        folder=lambda wildcards, output: os.path.dirname(output.description),
        flags=other_data_flags(),
    message:
        "Prepare the sentence pairs {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m reproduction.data.shifted.pairs --trained {params.trained:q} --name {wildcards.away} --out {params.folder:q}"
        " {params.flags} > {log:q} 2>&1"


rule binarise_away:
    # Through the dictionary of the training, which is that of both languages.
    input:
        pairs=rules.other_pairs.output,
        trained=rules.binarise.output,
    output:
        dictionaries=expand(f"{OTHER_BINARISED}/dict.{{language}}.txt", language=languages(), allow_missing=True),
        record=f"{OTHER_BINARISED}/run.json",
    log:
        f"{OTHER_BINARISED}/binarise.log",
    benchmark:
        f"{OTHER_BINARISED}/binarise.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        script=script("fairseq/preprocess.py"),
        dictionary=lambda wildcards: f"{binarised_folder(wildcards)}/dict.{SOURCE_LANGUAGE}.txt",
        subwords=lambda wildcards: f"{OTHER_PAIRS}/subwords".format(**wildcards),
        folder=lambda wildcards: OTHER_BINARISED.format(**wildcards),
        languages=f"--source-lang {SOURCE_LANGUAGE} --target-lang {TARGET_LANGUAGE}",
    message:
        "Binarise {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python {params.script:q} {params.languages} --joined-dictionary --srcdict {params.dictionary:q}"
        " --destdir {params.folder:q} --testpref {params.subwords:q}/test > {log:q} 2>&1"


use rule copy_source as copy_source_away with:
    input:
        rules.other_pairs.output,
    output:
        metrics=f"{OTHER_COPY}/metrics@{{away}}.json",
        record=f"{OTHER_COPY}/metrics@{{away}}.run.json",
    log:
        f"{OTHER_COPY}/copy.log",
    benchmark:
        f"{OTHER_COPY}/copy.benchmark.tsv"
    params:
        hypotheses=lambda wildcards: f"{OTHER_PAIRS}/test.{SOURCE_LANGUAGE}".format(**wildcards),
        references=lambda wildcards: f"{OTHER_PAIRS}/test.{TARGET_LANGUAGE}".format(**wildcards),
        labels=lambda wildcards: labels(
            experiment="translation", variant="copy", config=wildcards.config, dataset=wildcards.dataset
        ),
    message:
        "Score the copied source of {wildcards.away}"


use rule translate as translate_away with:
    input:
        data=rules.binarise_away.output,
        model=f"{MT_RUN}/checkpoint.pt",
    output:
        translations=f"{MT_RUN}/translations@{{away}}/generate-test.txt",
        record=f"{MT_RUN}/translations@{{away}}/run.json",
    log:
        f"{MT_RUN}/translate@{{away}}.log",
    benchmark:
        f"{MT_RUN}/translate@{{away}}.benchmark.tsv"
    params:
        data=lambda wildcards: OTHER_BINARISED.format(**wildcards),
    message:
        "Translate {wildcards.away}: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"


use rule score_translation as score_translation_away with:
    input:
        pairs=rules.other_pairs.output,
        data=rules.binarise_away.output,
        model=f"{MT_RUN}/checkpoint.pt",
        translations=f"{MT_RUN}/translations@{{away}}/generate-test.txt",
    output:
        metrics=f"{MT_RUN}/metrics@{{away}}.json",
        record=f"{MT_RUN}/metrics@{{away}}.run.json",
    log:
        f"{MT_RUN}/score@{{away}}.log",
    benchmark:
        f"{MT_RUN}/score@{{away}}.benchmark.tsv"
    params:
        data=lambda wildcards: OTHER_BINARISED.format(**wildcards),
        references=lambda wildcards: f"{OTHER_PAIRS}/test.{TARGET_LANGUAGE}".format(**wildcards),
    message:
        "Score {wildcards.away}: {wildcards.variant}{wildcards.sites}, tau {wildcards.tau}, seed {wildcards.seed}"


rule other_rows:
    input:
        stand_ins=stand_ins,
    output:
        directory(OTHER_ROWS),
    log:
        f"{AWAY}/rows.log",
    benchmark:
        f"{AWAY}/rows.benchmark.tsv"
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=other_rows_module,
        flags=other_rows_flags,
    message:
        "Prepare {wildcards.away} for models of {wildcards.dataset}"
    shell:
        "python -m {params.module} --name {wildcards.away} --out {output:q} {params.flags} > {log:q} 2>&1"


use rule majority as majority_away with:
    input:
        stand_ins=lambda wildcards: stand_ins(wildcards, "glue"),
        other=OTHER_ROWS.replace("{experiment}", "glue"),
    output:
        metrics=f"{MAJORITY}/metrics@{{away}}.json",
        record=f"{MAJORITY}/metrics@{{away}}.run.json",
    log:
        f"{MAJORITY}/majority@{{away}}.log",
    benchmark:
        f"{MAJORITY}/majority@{{away}}.benchmark.tsv"
    params:
        data=other_majority_flags,
    message:
        "Count the answers of {wildcards.away}, for models of {wildcards.dataset}"


rule evaluate_finetuned_away:
    # The weights are temporary: Snakemake keeps them until this is done, if it is asked for beside the training; asked for
    # later, it trains again.
    input:
        rows=OTHER_ROWS,
        model=f"{BERT_RUN}/model",
    output:
        metrics=f"{BERT_RUN}/metrics@{{away}}.json",
        record=f"{BERT_RUN}/metrics@{{away}}.run.json",
    log:
        f"{BERT_RUN}/evaluate@{{away}}.log",
    benchmark:
        f"{BERT_RUN}/evaluate@{{away}}.benchmark.tsv"
    wildcard_constraints:
        experiment="glue|squad",
    conda:
        "../envs/environment.yaml"
    threads: job_resource("threads")
    resources:
        mem_mb=job_resource("mem_mb"),
        gpu=job_resource("gpu"),
        runtime=job_runtime("evaluation"),
    params:
        script=bert_script,
        work=lambda wildcards, output: f"{os.path.dirname(output.metrics)}/evaluation@{wildcards.away}",
        flags=evaluation_away_flags,
        labels=bert_labels,
    message:
        "Evaluate on {wildcards.away}: {wildcards.dataset}, {wildcards.variant}, tau {wildcards.tau}, seed {wildcards.seed}"
    shell:
        "python {params.script:q} --model_name_or_path {input.model:q} --do_eval --data_dir {input.rows:q}"
        " --output_dir {params.work:q} --seed {wildcards.seed} --threads {threads} {params.flags} {params.labels}"
        " > {log:q} 2>&1\n"
        "mv {params.work:q}/metrics.json {output.metrics:q}\n"
        "mv {params.work:q}/run.json {output.record:q}\n"
        "rm -r {params.work:q}"


rule write_ood_table:
    input:
        OOD_METRICS,
    output:
        table="results/{config}/ood_table.md",
        numbers=report(
            "results/{config}/ood_table.csv",
            caption="captions/ood_table.rst",
            category="Out of distribution",
            labels={"what": "Models on data of another kind", "as": "table"},
        ),
    log:
        "results/{config}/logs/ood_table.log",
    benchmark:
        "results/{config}/logs/ood_table.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    params:
        taus=ood_tau_flags(),
    message:
        "Write {output.table}"
    shell:
        "python -m reproduction.analysis.figures.shift --config-name {wildcards.config} {params.taus} --metrics {input:q}"
        " --out {output.table:q} > {log:q} 2>&1"
