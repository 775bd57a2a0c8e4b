# Texts, sentence pairs and stand-ins, prepared.
LM_FOLDER = folder_of("language_modelling")
CORPUS = f"{LM_FOLDER}/corpus"
MT_FOLDER = folder_of("translation")
PAIRS = f"{MT_FOLDER}/pairs"
SPLITS = ["train", "valid", "test"]
STAND_INS = "runs/{config}/{experiment}/stand-ins"

# Sources that a module of reproduction/data writes; others are data folders, or the hub.
WRITTEN_SOURCES = ("bible_glue", "bible_squad")


def dataset_flags(dataset):
    """Flags of the module of reproduction/data that prepares a dataset."""
    options = dict(dataset[dataset["source"]])
    if dataset["source"] in ("wikitext", "multi30k", "bible_de_en") and config["data_dir"]:
        # A shell leaves the ~ of `--config data_dir=~/data` as it is.
        options["data_dir"] = os.path.expanduser(config["data_dir"])
    return flags(options, dashes=True)


def corpus_folder(wildcards):
    """The prepared text of a run."""
    return CORPUS.format(**wildcards)


def languages():
    """Source and target language, as file endings."""
    source = MT["dataset"]["source"]
    options = MT["dataset"][source]
    return {
        "bible_pairs": lambda: (options["source"], options["target"]),
        "bible_de_en": lambda: ("de", "en") if options["source"] == "de" else ("en", "de"),
        "multi30k": lambda: ("de", "en") if options["source"] == "de" else ("en", "de"),
        "iwslt14": lambda: ("de", "en"),
        "wmt17": lambda: ("en", "de"),
    }[source]()


SOURCE_LANGUAGE, TARGET_LANGUAGE = languages()


def pairs_folder(wildcards):
    """The prepared sentence pairs of a run."""
    return PAIRS.format(**wildcards)


def pairs_flags(wildcards):
    """Flags of the module that prepares the pairs: all that the data set has, or the share in its name."""
    dataset, source = MT["dataset"], MT["dataset"]["source"]
    for fraction in MT["pairs_comparison"]["fractions"]:
        if wildcards.dataset == fewer_pairs(fraction):
            share = fraction * dataset[source]["pairs_fraction"]
            return dataset_flags({**dataset, source: {**dataset[source], "pairs_fraction": share}})
    return dataset_flags(dataset)


def stand_ins(wildcards, experiment=None):
    """The folder of the stand-in tasks, if the configuration has them."""
    experiment = experiment or wildcards.experiment
    if config[experiment]["dataset"]["source"] not in WRITTEN_SOURCES:
        return []
    return STAND_INS.format(config=wildcards.config, experiment=experiment)


def stand_in_flags(wildcards):
    """Flags of the module that writes them."""
    return dataset_flags(config[wildcards.experiment]["dataset"])


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


rule stand_ins:
    output:
        directory(STAND_INS),
    log:
        "runs/{config}/{experiment}/logs/stand_ins.log",
    conda:
        "../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=job_resource("data_mem_mb"),
        runtime=job_runtime("data"),
    params:
        module=lambda wildcards: f"reproduction.data.tasks.{config[wildcards.experiment]['dataset']['source']}",
        flags=stand_in_flags,
    message:
        "Write the stand-ins for {wildcards.experiment}"
    shell:
        "python -m {params.module} --out {output:q} {params.flags} > {log:q} 2>&1"
