# Softmax beside entmax in translation: the files that the comparison needs. No rules here.


def entmax_models():
    """(variant, tau) of every model in the comparison: softmax, then entmax, each dense and pruned by its own pattern."""
    taus = MT["entmax"]["taus"]
    return [
        *[("dense", 0), *(("data", tau) for tau in taus)],
        *[("entmax-dense", 0), *(("entmax-data", tau) for tau in taus)],
    ]


def entmax_metrics():
    """Scores of each of them, and what its checkpoint shows."""
    names = ("metrics.json", "metrics@checkpoint.json")
    return [file for name in names for file in model_files("translation", MT["dataset"]["name"], entmax_models(), name)]


ENTMAX_METRICS = entmax_metrics()
