"""Input functions of the rules of slides and spots: what the sheet says of {slide}."""


def slide_row(wildcards):
    """Return the row of {slide} in the slide sheet."""
    try:
        return SLIDE_ROWS[wildcards.slide]
    except KeyError:
        raise WorkflowError(f"the slide sheet has no slide {wildcards.slide}") from None


def slide_image(wildcards):
    """Return the whole-slide image of {slide}."""
    return slide_row(wildcards)["image"]


def slide_mpp(wildcards):
    """Return the pixel size of {slide} in um that the sheet gives, or None."""
    mpp = slide_row(wildcards)["mpp"]
    return None if mpp != mpp else float(mpp)


def slide_most_mm(wildcards):
    """Return the largest side in mm that the sheet allows {slide}, or None."""
    most = slide_row(wildcards)["max_mm"]
    return None if most != most else float(most)


def slide_inputs(wildcards):
    """Return the image of {slide}, and the scale factors of its Space Ranger folder if it has one."""
    inputs = {"image": slide_image(wildcards)}
    counts = slide_row(wildcards)["counts"]
    scales = Path(counts) / "spatial/scalefactors_json.json"
    if counts and not counts.startswith("data/simulated/") and scales.is_file():
        inputs["scalefactors"] = scales.as_posix()
    return inputs


def designed_composition(wildcards):
    """Return what the simulated tissue of {slide} consists of."""
    return slide_composition(config["seed"], wildcards.slide).to_settings()


def tile_inputs(wildcards):
    """Return the spots of {slide} if it has any: its tiles lie on them; or its annotated regions."""
    if wildcards.slide in SECTIONS:
        return {"spots": f"results/spots/{wildcards.slide}.h5ad"}
    regions = slide_row(wildcards)["regions"]
    return {"regions": regions} if regions else {}


def given_features(wildcards):
    """Return the features of {slide} that the sheet gives, if any."""
    path = slide_row(wildcards)["features"]
    return {"given": path} if path else {}


def encoder_settings(wildcards):
    """Return the settings of {encoder}."""
    return EXPORTED[wildcards.encoder]


def encoder_weights(wildcards):
    """Return the files of weights of {encoder}; none of one whose package brings them."""
    return encoder_choices.weights_files([encoder_settings(wildcards)])


def export_memory(wildcards, input):
    """Return MB for a network in torch, its converted copy, and both while they are compared."""
    return 3000 + round(6 * input.size_mb)


def section_counts(wildcards):
    """Return the counts of {slide}, for legacy ST tables the positions of its spots, and of genes."""
    row = slide_row(wildcards)
    if row["counts"].startswith("data/simulated/"):
        folder = row["counts"]
        return {
            "counts": f"{folder}/filtered_feature_bc_matrix.h5",
            "positions": f"{folder}/spatial/tissue_positions.csv",
            "scalefactors": f"{folder}/spatial/scalefactors_json.json",
            "hires": f"{folder}/spatial/tissue_hires_image.png",
        }
    given = {
        "counts": row["counts"],
        "positions": row["positions"],
        # They know the symbols of genes that go by Ensembl ids.
        "gene_positions": GENE_POSITIONS,
    }
    return {name: path for name, path in given.items() if path}


def resource_content(wildcards):
    """Return the digest of a shipped reference: its content, not its place, decides a rerun."""
    return digest_resource(wildcards.name)


def section_labels(wildcards):
    """Return the annotation of {slide} if it has one, and the gene positions if they are known."""
    inputs = {
        "labels": slide_row(wildcards)["labels"],
        "gene_positions": GENE_POSITIONS,
    }
    return {name: path for name, path in inputs.items() if path}
