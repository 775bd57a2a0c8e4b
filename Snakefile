# Attention Pruning, from text to figure. Run it with `make figure`, or inside the virtual environment with
#
#     snakemake --cores 8                                          # the quick experiments, results/ap_figure.png
#     snakemake --cores 8 --configfile config/small.yaml           # others: smoke, quick, small, paper
#     snakemake language_modelling --cores 8                       # one experiment without the figure
#
# What is run stands in config/, where it runs in profiles/.
from pathlib import Path

from snakemake.utils import min_version

min_version("9.0")

# Only without --configfile: this line would mix quick's values into any other configuration.
if not workflow.overwrite_configfiles:

    configfile: str(Path(workflow.basedir) / "config" / "quick.yaml")


report: "rules/captions/workflow.rst"


# One machine shares its GPUs (profiles/default); on a cluster every job has its own.
resource_scopes:
    gpu="local",


# Seconds each, without a model: on a cluster they run where Snakemake runs, not as hundreds of submissions. So does what collects and draws.
localrules:
    mask,
    control_mask,
    copy_source,
    copy_source_away,
    majority,
    majority_away,
    score_translation,
    score_translation_away,
    configuration,
    explore,
    summarise_runs,
    choose,
    choose_efficiency,


include: "rules/lock.smk"
include: "rules/validation.smk"
include: "rules/settings.smk"
include: "rules/data.smk"
include: "rules/masks.smk"
include: "rules/language_modelling.smk"
include: "rules/translation.smk"
include: "rules/understanding.smk"
include: "rules/out_of_distribution.smk"
include: "rules/on_request.smk"
include: "rules/figures.smk"


rule figure:
    default_target: True
    input:
        "results/ap_figure.png",
        TASK_FIGURE,
    message:
        "Done: {input}"


rule everything:
    # What a report can show.
    input:
        REPORT_FILES,
    message:
        "Done: {input}"


rule shown:
    # What a report shows of what is there; nothing of it is trained.
    input:
        SHOWN_FILES,


rule language_modelling:
    input:
        asked_for("language_modelling", LANGUAGE_MODELLING_METRICS, "language_modelling"),


rule translation:
    input:
        asked_for("translation", TRANSLATION_METRICS, "translation"),


rule translation_sites:
    input:
        asked_for("translation_sites", f"results/{config['name']}/translation_sites.png", "translation", "site_taus"),


rule entmax_comparison:
    input:
        asked_for(
            "entmax_comparison", f"results/{config['name']}/entmax_comparison.png", "translation", "entmax", "taus"
        ),


rule mask_comparison:
    # Whichever of the two experiments has choices.
    input:
        asked_for(
            "mask_comparison",
            f"results/{config['name']}/mask_comparison.png",
            COMPARED[0] if COMPARED else EXPERIMENTS[0],
            "mask_comparison",
            "taus",
        ),


rule pairs_comparison:
    input:
        asked_for(
            "pairs_comparison",
            f"results/{config['name']}/pairs_comparison.png",
            "translation",
            "pairs_comparison",
            "taus",
        ),


rule glue:
    input:
        asked_for("glue", GLUE_METRICS, "glue"),


rule squad:
    input:
        asked_for("squad", f"results/{config['name']}/squad.csv", "squad"),


rule efficiency_table:
    input:
        asked_for("efficiency_table", "results/efficiency_table.md", "squad"),


rule language_model_efficiency:
    input:
        asked_for(
            "language_model_efficiency",
            f"results/{config['name']}/language_model_efficiency.png",
            "language_modelling",
        ),


rule ood_table:
    input:
        asked_for("ood_table", f"results/{config['name']}/ood_table.md", "out_of_distribution", "names"),
