# Figures about patterns, and what the report holds: files and flags. No rules here.
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


def report_files():
    """What `make report` shows. What is drawn only on request is in it once it has been."""
    figures = ["ap_figure", "paper_comparison", "controls", "pattern_gallery", "structural_zeros"]
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
