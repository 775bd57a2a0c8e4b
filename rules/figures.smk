# From the metrics of all runs to tables, figures and the report.
import functools
import json
import shlex
import subprocess
import sys

RESULTS = f"results/{config['name']}"
FIGURE_METRICS = [
    file
    for experiment, files in {
        "language_modelling": LANGUAGE_MODELLING_METRICS,
        "translation": TRANSLATION_METRICS,
        "glue": GLUE_METRICS,
    }.items()
    if experiment in EXPERIMENTS
    for file in files
]
TASK_FIGURE = [f"{RESULTS}/glue_tasks.png"] if "glue" in EXPERIMENTS else []

# Titles of the sites whose patterns are drawn, and where their patterns are; of the tasks of GLUE the first.
ALL_SITES = {
    "Language model, self": ("language_modelling", LM["dataset"]["name"], ""),
    **{f"Translation, {site}": ("translation", MT["dataset"]["name"], f"-{site}") for site in SITES},
    f"{GLUE['dataset']['tasks'][0]}, self": ("glue", GLUE["dataset"]["tasks"][0], ""),
}
DRAWN_SITES = {title: place for title, place in ALL_SITES.items() if place[0] in EXPERIMENTS}


def site_files(experiment, dataset, site):
    """The pattern of a site in the dense model of the first seed, and the masks that were made of it."""
    folder = FOLDER.format(config=config["name"], experiment=experiment, dataset=dataset)
    seed = config[experiment]["seeds"][0]
    masks = [
        f"{folder}/data/tau{tau:g}/seed{seed}/mask{site}.safetensors" for tau in config[experiment]["pruning"]["taus"]
    ]
    return [f"{folder}/dense/tau0/seed{seed}/pattern{site}.safetensors", *masks]


def drawn_files():
    """All of them."""
    return [file for place in DRAWN_SITES.values() for file in site_files(*place)]


def site_flags():
    """The same as flags of the modules that draw them."""
    return shlex.join(word for title, place in DRAWN_SITES.items() for word in ("--site", title, *site_files(*place)))


# Pages of the explorer: the title and the pattern of each site.
EXPLORED = {f"{place[0]}{place[2]}": (title, site_files(*place)[0]) for title, place in DRAWN_SITES.items()}


def explored_pattern(wildcards):
    """The pattern of the dense model of the first seed."""
    return EXPLORED[wildcards.page][1]


def explored_labels(wildcards):
    """What a report calls the page of a site."""
    return {"what": f"{EXPLORED[wildcards.page][0]}: every head and cell", "as": "page"}


def configuration_text():
    """The configuration with all defaults filled in, as JSON."""
    return json.dumps(config, indent=2)


@functools.cache
def other_source(runs):
    """What captions say of runs that another version of the source code made."""
    if not os.path.isdir(runs):
        return ""
    command = [sys.executable, "-m", "reproduction.runs.source", "--runs", runs]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def code_of_runs(wildcards):
    """Runs of another version of the source code: a figure is drawn again when they change, as its caption names them."""
    return other_source(f"runs/{wildcards.config}")


def report_files():
    """What `make report` shows. What is drawn only on request is in it once it has been."""
    figures = ["ap_figure", "controls", "pattern_gallery", "structural_zeros"]
    names = [f"{name}.png" for name in figures]
    names += ["metrics.csv", "configuration.json", "runs.csv"]
    names += [f"explore/{page}.html" for page in EXPLORED]
    on_request = [
        "translation_sites.png",
        "entmax_comparison.png",
        "mask_comparison.png",
        "pairs_comparison.png",
        "language_model_efficiency.png",
        "efficiency_table.png",
    ]
    on_request += ["ood_table.csv", "squad.csv"]
    names += [name for name in on_request if os.path.exists(f"{RESULTS}/{name}")]
    return [*TASK_FIGURE, *(f"{RESULTS}/{name}" for name in names)]


REPORT_FILES = report_files()


def shown_files():
    """Those of them that are there, or can be drawn from what is there."""

    def there(file):
        if os.path.exists(file) or file.endswith("configuration.json"):
            return True
        if file.endswith("runs.csv"):
            return os.path.isdir(f"runs/{config['name']}")
        if file.endswith(".html"):
            return os.path.exists(EXPLORED[Path(file).stem][1])
        patterns = file.endswith(("pattern_gallery.png", "structural_zeros.png"))
        drawn_from = drawn_files() if patterns else [f"{RESULTS}/metrics.csv"]
        return all(map(os.path.exists, drawn_from))

    return [file for file in REPORT_FILES if there(file)]


SHOWN_FILES = shown_files()


METRICS, PAPER = "results/{config}/metrics.csv", script("reproduction/analysis/paper_reference.csv")
# The tables that are collected from runs: what the report calls them, and the metrics of the runs.
COLLECTED = {
    "metrics": ("What was run", "All metrics", FIGURE_METRICS),
    "translation_sites": ("Translation", "Every site pruned alone", [*TRANSLATION_METRICS, *TRANSLATION_SITE_METRICS]),
    "entmax_comparison": ("Translation", "Softmax and entmax", ENTMAX_METRICS),
    "mask_comparison": ("Controls", "Rules, scopes and controls", COMPARISON_METRICS),
    "pairs_comparison": ("Translation", "Fewer pairs, and by length", PAIRS_COMPARISON_METRICS),
    "squad": ("Language understanding", "Questions (SQuAD)", SQUAD_METRICS),
}
# What is drawn or written: what the report calls it, the endings of its files (the first is that of --out), and what it is made of, by
# the flags that take it.
DRAWN = {
    "ap_figure": (
        "Attention Pruning",
        "The paper's figure",
        "png md csv",
        {"metrics": METRICS, "reference": PAPER},
    ),
    "glue_tasks": ("Language understanding", "Every task by itself", "png md csv", {"metrics": METRICS}),
    "controls": ("Controls", "Data-informed masks and controls", "png md csv", {"metrics": METRICS}),
    "translation_sites": (
        *COLLECTED["translation_sites"][:2],
        "png md",
        {"metrics": "results/{config}/translation_sites.csv"},
    ),
    "entmax_comparison": (
        *COLLECTED["entmax_comparison"][:2],
        "png md",
        {"metrics": "results/{config}/entmax_comparison.csv"},
    ),
    "mask_comparison": (
        *COLLECTED["mask_comparison"][:2],
        "png md",
        {"metrics": "results/{config}/mask_comparison.csv"},
    ),
    "pairs_comparison": (
        *COLLECTED["pairs_comparison"][:2],
        "png md",
        {"metrics": "results/{config}/pairs_comparison.csv"},
    ),
    "pattern_gallery": (
        "Patterns",
        "Average attention and masks of every site",
        "png md csv",
        {"sites": drawn_files()},
    ),
    "structural_zeros": (
        "Patterns",
        "Nominal and effective sparsity by layer",
        "png md csv",
        {"sites": drawn_files()},
    ),
    "efficiency_table": (
        "Efficiency",
        "Time and memory of questions (SQuAD)",
        "png md csv",
        {
            "measured": f"{folder_of('squad')}/efficiency.json".format(
                config="{config}", dataset=SQUAD["dataset"]["name"]
            ),
            "metrics": EFFICIENCY_METRICS,
            "reference": PAPER,
        },
    ),
    "language_model_efficiency": (
        "Efficiency",
        "What pruning saves in language modelling",
        "png md csv",
        {
            "measured": f"{LM_FOLDER}/efficiency.json".format(config="{config}", dataset=LM["dataset"]["name"]),
            "metrics": LM_EFFICIENCY_METRICS,
        },
    ),
    "ood_table": ("Out of distribution", "Models on data of another kind", "md csv", {"metrics": OOD_METRICS}),
}


def in_report(name, ending, category, what, caption=None):
    """A file of results/ that the report shows, under a caption of rules/captions or else the one written beside it."""
    captions = (
        Path(workflow.basedir, "rules", "captions", f"{caption or name}.rst"),
        Path(RESULTS, f"{name}.md").absolute(),
    )
    return report(
        f"results/{{config}}/{name}.{ending}",
        caption=str(next(filter(Path.exists, captions), captions[-1])),
        category=category,
        labels={"what": what, "as": {"png": "figure", "json": "JSON"}.get(ending, "table")},
    )


def says_source(made_of):
    """Whether a caption says which runs other source made: that of what is drawn from a table of results/."""
    return isinstance(made_of.get("metrics"), str)


def drawing_flags(name, made_of):
    """Flags of what draws a figure, from its input."""

    def found(wildcards, input):
        words = [f"--config-name {wildcards.config} {ood_tau_flags()}"] if name == "ood_table" else []
        if "sites" in made_of:
            return site_flags()
        words += [f"--{key} {shlex.join([files] if isinstance(files, str) else files)}" for key, files in input.items()]
        return " ".join(words + [f"--runs runs/{wildcards.config}"] * says_source(made_of))

    return found


for name, (category, what, files) in COLLECTED.items():

    rule:
        name:
            f"collect_{name}"
        input:
            files,
        output:
            in_report(name, "csv", category, what),
        log:
            f"results/{{config}}/logs/{name}{'.metrics' if name in DRAWN else ''}.log",
        localrule: True
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=1000,
            runtime=job_runtime("small"),
        message:
            "Collect {output}"
        shell:
            "python -m reproduction.analysis.table --config-name {wildcards.config} --out {output:q} {input:q} > {log:q} 2>&1"


for name, (category, what, endings, made_of) in DRAWN.items():

    rule:
        name:
            f"draw_{name}"
        input:
            **made_of,
        output:
            *[in_report(name, ending, category, what) for ending in endings.split() if ending != "md"],
            f"results/{{config}}/{name}.md",
        log:
            f"results/{{config}}/logs/{name}.log",
        localrule: True
        conda:
            "../envs/environment.yaml"
        threads: 1
        resources:
            mem_mb=job_resource("mem_mb") if category == "Patterns" else 1000,
            runtime=job_runtime("small"),
        params:
            name=name,
            out=f"results/{{config}}/{name}.{endings.split()[0]}",
            flags=drawing_flags(name, made_of),
            code=code_of_runs if says_source(made_of) else "",
        message:
            "Draw {params.out}"
        shell:
            "python -m reproduction.analysis.figures {params.name} {params.flags} --out {params.out:q} > {log:q} 2>&1"


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


rule configuration:
    output:
        in_report("configuration", "json", "What was run", "Configuration, defaults filled in"),
    log:
        "results/{config}/logs/configuration.log",
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
        runs=in_report("runs", "csv", "What was run", "Runs, time and memory by script"),
        software=in_report("software", "csv", "What was run", "Software", "runs"),
    log:
        "results/{config}/logs/runs.log",
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


rule choose:
    # results/ap_figure.png is the figure of the configuration at hand.
    input:
        f"{RESULTS}/ap_figure.png",
        f"{RESULTS}/ap_figure.md",
    output:
        "results/ap_figure.png",
        "results/ap_figure.md",
    log:
        "results/ap_figure.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=100,
        runtime=job_runtime("small"),
    message:
        "Copy {input}"
    shell:
        "cp {input:q} results/ 2> {log:q}"


use rule choose as choose_efficiency with:
    input:
        f"{RESULTS}/efficiency_table.md",
    output:
        "results/efficiency_table.md",
    log:
        "results/efficiency_table.log",
    message:
        "Copy {input}"
