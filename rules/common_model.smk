"""Input functions of the rules of folds and models."""


def fold_ids():
    """Return the ids of the folds of the usable sections."""
    sections = usable(SECTIONS)
    patients = {patient_of(section) for section in sections}
    return folds.fold_names(
        n_patients=len(patients), n_sections=len(sections), settings=config["folds"]
    )


def of_folds(pattern):
    """Return an input function that gives the files of all folds, one for each {fold}."""

    def files(wildcards):
        return [pattern.format(fold=fold, study=STUDY) for fold in fold_ids()]

    return files


def held_out():
    """Return fold and model of every prediction of held-out sections."""
    return [
        (fold, model)
        for fold in fold_ids()
        for model, choices in config["models"].items()
        # The wide panel serves copy number only; the paper's protocol knows only its own network.
        if (fold.startswith("honest-") and choices["panel"] == "main")
        or (fold.startswith("hist-") and choices["kind"] == "cmunet")
    ]


def wide_held_out():
    """Return fold and model of the wide panel's held-out training.

    It serves copy number only: its honest folds are trained where predicted is compared with
    measured copy number, and audited like all others.
    """
    return [
        (fold, config["deploy"]["wide"])
        for fold in fold_ids()
        if fold.startswith("honest-") and study_stages().runs("cnv agreement")
    ]


def of_wide(name):
    """Return an input function that gives a file of each held-out training of the wide panel."""

    def files(wildcards):
        return [
            f"results/models/{STUDY}/{fold}/{model}/{name}"
            for fold, model in wide_held_out()
        ]

    return files


def model_settings(wildcards):
    """Return the settings of {model} under its name, as the configuration has them."""
    return {wildcards.model: config["models"][wildcards.model]}


def training_inputs(wildcards):
    """Return an ensemble's members; for the fold `all`, the honest folds' settings.

    Those fix the number of epochs.
    """
    members = config["models"][wildcards.model]["members"]
    if members:
        folder = f"results/models/{STUDY}/{wildcards.fold}"
        return {
            "members": [f"{folder}/{member}/weights.safetensors" for member in members],
            "member_settings": [
                f"{folder}/{member}/settings.json" for member in members
            ],
        }
    if wildcards.fold != "all":
        return {}
    return {
        "fold_settings": [
            f"results/models/{STUDY}/{fold}/{model}/settings.json"
            for fold, model in held_out()
            if fold.startswith("honest-") and model == wildcards.model
        ]
    }


def trained_settings(wildcards):
    """Return the settings of every model that was trained with sections held out."""
    return [
        f"results/models/{STUDY}/{fold}/{model}/settings.json"
        for fold, model in held_out()
    ]


def audited_settings(wildcards):
    """Return the settings of every model with sections held out, those of the wide panel too."""
    return trained_settings(wildcards) + [
        f"results/models/{STUDY}/{fold}/{model}/settings.json"
        for fold, model in wide_held_out()
    ]


def held_out_predictions(wildcards):
    """Return the predictions of every held-out section by every model."""
    return [
        f"results/predictions/{STUDY}/{fold}/{model}.h5ad" for fold, model in held_out()
    ]
