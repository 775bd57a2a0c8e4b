# Figures of numbers and patterns beyond the paper's figure; configuration, time and memory of the runs.
rule draw_patterns:
    input:
        drawn_files(),
    output:
        figure=report(
            "results/{config}/pattern_gallery.png",
            caption=figure_caption("pattern_gallery"),
            category="Patterns",
            labels={"what": "Average attention and masks of every site", "as": "figure"},
        ),
        caption="results/{config}/pattern_gallery.md",
        numbers=report(
            "results/{config}/pattern_gallery.csv",
            caption=figure_caption("pattern_gallery"),
            category="Patterns",
            labels={"what": "Average attention and masks of every site", "as": "table"},
        ),
    log:
        "results/{config}/logs/pattern_gallery.log",
    benchmark:
        "results/{config}/logs/pattern_gallery.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    params:
        sites=site_flags(),
    message:
        "Draw {output.figure}"
    shell:
        "python -m reproduction.analysis.figures.patterns {params.sites} --out {output.figure:q} > {log:q} 2>&1"


rule explore:
    input:
        explored_pattern,
    output:
        report(
            "results/{config}/explore/{page}.html",
            caption="captions/explore.rst",
            category="Patterns",
            labels=explored_labels,
        ),
    log:
        "results/{config}/logs/explore_{page}.log",
    benchmark:
        "results/{config}/logs/explore_{page}.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    message:
        "Write {output}"
    shell:
        "python -m attention_pruning.cli explore {input:q} -o {output:q} > {log:q} 2>&1"


rule draw_structural_zeros:
    input:
        drawn_files(),
    output:
        figure=report(
            "results/{config}/structural_zeros.png",
            caption=figure_caption("structural_zeros"),
            category="Patterns",
            labels={"what": "Nominal and effective sparsity by layer", "as": "figure"},
        ),
        caption="results/{config}/structural_zeros.md",
        numbers=report(
            "results/{config}/structural_zeros.csv",
            caption=figure_caption("structural_zeros"),
            category="Patterns",
            labels={"what": "Nominal and effective sparsity by layer", "as": "table"},
        ),
    log:
        "results/{config}/logs/structural_zeros.log",
    benchmark:
        "results/{config}/logs/structural_zeros.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("mem_mb"),
        runtime=job_runtime("small"),
    params:
        sites=site_flags(),
    message:
        "Draw {output.figure}"
    shell:
        "python -m reproduction.analysis.figures.structural_zeros {params.sites} --out {output.figure:q} > {log:q} 2>&1"


rule draw_controls:
    input:
        "results/{config}/metrics.csv",
    output:
        figure=report(
            "results/{config}/controls.png",
            caption=figure_caption("controls"),
            category="Controls",
            labels={"what": "Data-informed masks and controls", "as": "figure"},
        ),
        caption="results/{config}/controls.md",
        numbers=report(
            "results/{config}/controls.csv",
            caption=figure_caption("controls"),
            category="Controls",
            labels={"what": "Data-informed masks and controls", "as": "table"},
        ),
    log:
        "results/{config}/logs/controls.log",
    benchmark:
        "results/{config}/logs/controls.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    params:
        code=code_of_runs,
    message:
        "Draw {output.figure}"
    shell:
        "python -m reproduction.analysis.figures.controls --metrics {input:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"


rule draw_comparison:
    input:
        metrics="results/{config}/metrics.csv",
        configuration="results/{config}/configuration.json",
        published=script("config/paper.yaml"),
        reference=script("reproduction/analysis/paper_reference.csv"),
    output:
        figure=report(
            "results/{config}/paper_comparison.png",
            caption=figure_caption("paper_comparison"),
            category="Attention Pruning",
            labels={"what": "Beside the paper's, relative to dense", "as": "figure"},
        ),
        caption="results/{config}/paper_comparison.md",
        numbers=report(
            "results/{config}/paper_comparison.csv",
            caption=figure_caption("paper_comparison"),
            category="Attention Pruning",
            labels={"what": "Beside the paper's, relative to dense", "as": "table"},
        ),
    log:
        "results/{config}/logs/paper_comparison.log",
    benchmark:
        "results/{config}/logs/paper_comparison.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    params:
        code=code_of_runs,
    message:
        "Draw {output.figure}"
    shell:
        "python -m reproduction.analysis.figures.paper_comparison --metrics {input.metrics:q} --configuration {input.configuration:q}"
        " --published {input.published:q} --reference {input.reference:q} --out {output.figure:q}"
        " --runs runs/{wildcards.config} > {log:q} 2>&1"


rule configuration:
    output:
        report(
            "results/{config}/configuration.json",
            caption="captions/configuration.rst",
            category="What was run",
            labels={"what": "Configuration, defaults filled in", "as": "JSON"},
        ),
    log:
        "results/{config}/logs/configuration.log",
    benchmark:
        "results/{config}/logs/configuration.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=job_runtime("small"),
    params:
        text=configuration_text(),
    message:
        "Write {output}"
    shell:
        "printf '%s\\n' {params.text:q} > {output:q} 2> {log:q}"


rule summarise_runs:
    # Every run that there is, once those of the figure are done.
    input:
        "results/{config}/metrics.csv",
    output:
        runs=report(
            "results/{config}/runs.csv",
            caption="captions/runs.rst",
            category="What was run",
            labels={"what": "Runs, time and memory by script", "as": "table"},
        ),
        software=report(
            "results/{config}/software.csv",
            caption="captions/runs.rst",
            category="What was run",
            labels={"what": "Software", "as": "table"},
        ),
    log:
        "results/{config}/logs/runs.log",
    benchmark:
        "results/{config}/logs/runs.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    message:
        "Sum up the runs of {wildcards.config}"
    shell:
        "python -m reproduction.analysis.run_summary --runs runs/{wildcards.config} --out {output.runs:q}"
        " --software {output.software:q} > {log:q} 2>&1"


rule language_model_efficiency_table:
    # On request: it trains a model for each share and kind of blocks, and times them.
    input:
        measured=f"{LM_FOLDER}/efficiency.json".format(config="{config}", dataset=LM["dataset"]["name"]),
        metrics=LM_EFFICIENCY_METRICS,
    output:
        figure=report(
            "results/{config}/language_model_efficiency.png",
            caption=figure_caption("language_model_efficiency"),
            category="Efficiency",
            labels={"what": "What pruning saves in language modelling", "as": "figure"},
        ),
        caption="results/{config}/language_model_efficiency.md",
        numbers=report(
            "results/{config}/language_model_efficiency.csv",
            caption=figure_caption("language_model_efficiency"),
            category="Efficiency",
            labels={"what": "What pruning saves in language modelling", "as": "table"},
        ),
    log:
        "results/{config}/logs/language_model_efficiency.log",
    benchmark:
        "results/{config}/logs/language_model_efficiency.benchmark.tsv"
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=1000,
        runtime=job_runtime("small"),
    message:
        "Write {output.caption}"
    shell:
        "python -m reproduction.analysis.figures.language_model_efficiency --measured {input.measured:q} --metrics {input.metrics:q}"
        " --out {output.figure:q} > {log:q} 2>&1"
