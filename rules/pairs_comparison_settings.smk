# Masks where there are fewer sentence pairs to learn from: the files that the comparison needs. No rules here.
PAIRS_COMPARED = MT["pairs_comparison"]


def pairs_comparison_metrics():
    """Scores of each model, of all test sentences and by their length, with all pairs first; and of the copied source."""
    known = {"config": config["name"], "dataset": MT["dataset"]["name"]}
    files = [f"{COPY}/metrics.json".format(**known)]
    chosen = [("dense", 0), *(("data", tau) for tau in PAIRS_COMPARED["taus"])]
    for dataset in (MT["dataset"]["name"], *map(fewer_pairs, PAIRS_COMPARED["fractions"])):
        for name in ("metrics.json", "metrics@length.json"):
            files += model_files("translation", dataset, chosen, name)
    return files


PAIRS_COMPARISON_METRICS = pairs_comparison_metrics()
