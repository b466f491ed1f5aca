"""The whole workflow on the simulated study: the planted truth comes back, reruns are exact."""

from __future__ import annotations

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import psutil
import pytest
import pyvips
import yaml
from filelock import FileLock
from sklearn.metrics import roc_auc_score

from histogep.deployment.folder import folder_digest
from histogep.files import read_json, write_json
from histogep.simulate.cohort import slide_composition

pytestmark = pytest.mark.workflow

REPOSITORY = Path(__file__).resolve().parents[2]


def snakemake(directory, *arguments, repository=REPOSITORY):
    """Run Snakemake on two cores in a directory; return what it did, said and how it was busy."""
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        repository / "Snakefile",
        "--directory",
        directory,
        "--cores",
        "2",
        *arguments,
    ]
    done = SimpleNamespace(most_threads=0)
    with tempfile.TemporaryFile("w+") as said:
        process = psutil.Popen(
            list(map(str, command)), stdout=said, stderr=subprocess.STDOUT, cwd=repository
        )
        while process.poll() is None:
            with contextlib.suppress(psutil.Error):
                done.most_threads = max(done.most_threads, process.num_threads())
            time.sleep(0.2)
        done.returncode = process.returncode
        said.seek(0)
        done.said = said.read()
    return done


def planned_rules(done):
    """Return the rules and job counts of a dry run's table."""
    rules = {}
    for line in done.said.splitlines():
        words = line.split()
        if len(words) == 2 and words[0].isidentifier() and words[1].isdigit():
            rules[words[0]] = int(words[1])
    return {rule: count for rule, count in rules.items() if rule not in {"total", "all"}}


def copied_repository(folder):
    """Return a copy of the repository in another place: moving it must rerun nothing."""
    ignore = shutil.ignore_patterns(".git", ".venv", "results", "data", ".snakemake", "__pycache__")
    shutil.copytree(REPOSITORY, folder, ignore=ignore)
    return folder


@pytest.fixture(scope="session")
def demo(tmp_path_factory, worker_id):
    """The finished default study, made once for all workers of pytest-xdist. Nothing is written to it."""
    base = tmp_path_factory.getbasetemp()
    shared = base if worker_id == "master" else base.parent
    folder = shared / "demo"
    # The first worker runs it on all cores, the others wait.
    with FileLock(shared / "demo.lock"):
        if not folder.exists():
            folder.mkdir()
            done = snakemake(folder)
            (shared / "demo.said").write_text(done.said)
            assert done.returncode == 0, done.said[-8000:]
            # A timer for every job that has ended would be hundreds (Snakefile, onstart).
            assert done.most_threads < 40
            (shared / "demo.done").touch()
    assert (shared / "demo.done").exists(), (shared / "demo.said").read_text()[-8000:]
    return folder


@pytest.fixture(scope="session")
def truth(demo):
    return json.loads((demo / "data/simulated/truth.json").read_text())


def table(folder, path, **options):
    return pd.read_csv(folder / "results" / path, sep="\t", **options)


def card(scores, **where):
    """Return the one row of the scorecards that has these values."""
    for column, value in where.items():
        scores = scores[scores[column] == value]
    assert len(scores) == 1, scores
    return scores.iloc[0]


# ---------------------------------------------------------------- the planted truth comes back


def test_tumour_map_finds_the_planted_tumour_in_held_out_patients(demo):
    scores = table(demo, "evaluation/demo/scorecards.tsv")
    auroc = card(scores, protocol="patient_cv", task="tumour", model="tumour", metric="auroc")
    assert auroc["value"] >= 0.95
    assert auroc["value"] > auroc["null"]
    assert auroc["n_patients"] == 6


def test_planted_genes_are_predicted_beyond_their_null(demo, truth):
    genes = table(demo, "evaluation/demo/genes.tsv")
    patient_cv = genes[genes["protocol"] == "patient_cv"]
    # Stress is planted without a trace in the image: nobody can predict it from there.
    visible = {name: programme["genes"] for name, programme in truth["programmes"].items()}
    unseen = visible.pop("stress")
    planted = {gene for genes in visible.values() for gene in genes}
    for model in ("ridge", "blend", "cmunet"):
        scored = patient_cv[patient_cv["model"] == model]
        found = scored[scored["gene"].isin(planted)]
        assert len(found) >= 50
        assert (found["pearson"] > found["null"] + 0.2).mean() > 0.7
        assert found["ceiling"].notna().all()
        assert found["predictable"].mean() > 0.7
        assert scored.loc[scored["gene"].isin(unseen), "pearson"].mean() < 0.2


def test_intervals_cover_held_out_patients_as_promised(demo):
    scores = table(demo, "evaluation/demo/scorecards.tsv")
    for model in ("ridge", "blend", "cmunet"):
        coverage = card(scores, protocol="patient_cv", model=model, metric="coverage")
        assert 0.85 <= coverage["value"] <= 0.95
        assert coverage["n_patients"] == 6


def test_constant_in_tissue_scores_nothing_honestly_and_much_by_the_papers_metric(demo):
    scores = table(demo, "evaluation/demo/scorecards.tsv")
    patient_cv = card(scores, protocol="patient_cv", model="tissue_mask", metric="pearson")
    published = card(scores, protocol="published", model="tissue_mask", metric="pearson")
    assert patient_cv["value"] == 0
    assert published["value"] > 0.5
    network = card(scores, protocol="published", model="cmunet", metric="pearson")
    assert network["null"] == pytest.approx(published["value"], abs=1e-6)
    trained = card(scores, protocol="patient_cv", model="ridge", metric="pearson")
    assert trained["null"] < trained["value"] < trained["ceiling"]


def test_planted_clones_and_arms_are_found_on_measured_spots(demo, truth):
    import anndata
    from sklearn.metrics import adjusted_rand_score

    scores, right, called = [], 0, 0
    for folder in sorted((demo / "data/simulated").glob("P*/")):
        section = folder.name
        planted = pd.read_csv(folder / "truth.tsv", sep="\t", index_col="barcode")
        cnv = anndata.read_h5ad(demo / f"results/cnv/{section}.h5ad")
        tumour = cnv.obs_names[~cnv.obs["reference"].astype(bool) & (cnv.obs["clone"] != "")]
        tumour = tumour.intersection(planted.index[planted["clone"].notna()])
        clones = planted.loc[tumour, "clone"]
        if clones.nunique() < 2:
            continue
        scores.append(adjusted_rand_score(clones, cnv.obs.loc[tumour, "clone"].astype(str)))
        arms = table(demo, f"cnv/{section}.arms.tsv", dtype={"clone": str})
        majority = pd.crosstab(cnv.obs.loc[tumour, "clone"].astype(str), clones).idxmax(axis=1)
        for clone, name in majority.drop("unassigned", errors="ignore").items():
            for arm, ratio in truth["arms"][name].items():
                row = arms[(arms["clone"] == clone) & (arms["arm"] == arm)]
                if len(row):
                    called += 1
                    right += (row["value"].iloc[0] > 0) == (ratio > 1)
    assert len(scores) >= 4
    assert min(scores) >= 0.8
    assert right / called >= 0.95


def test_predicted_copy_number_agrees_with_measured_in_held_out_patients(demo):
    agreement = table(demo, "cnv/demo/agreement.tsv")
    tumour = agreement[agreement["contrast"] == "tumour"]
    assert tumour["slide"].nunique() == 7
    assert (tumour["verdict"] == "pass").all()
    assert (tumour["r"] > 3 * tumour["null_arms_q95"]).all()
    assert (tumour["arms_shared"] >= 0.7 * tumour["arms_altered"]).all()
    # Runs of neighbouring genes keep most of the copy number that both profiles share.
    assert (tumour["null_genes_q95"] > tumour["null_arms_q95"]).all()


def test_inferred_labels_are_checked_against_the_planted_annotation(demo):
    labels = table(demo, "evaluation/demo/labels.tsv")
    assert len(labels) == 7
    assert labels["auroc"].min() > 0.95
    assert (labels["auroc"] > labels["auroc_depth"]).all()
    assert (labels["dice"] > labels["dice_null"]).all()


def test_planted_hazard_is_found_and_an_irrelevant_set_is_not(demo, truth):
    cox = table(demo, "survival/hospital/cox.tsv").set_index("gene")
    hazard = cox.index.intersection(truth["programmes"]["hazard"]["genes"])
    assert len(hazard) >= 5
    assert (cox.loc[hazard, "fdr"] < 0.05).mean() > 0.5
    assert (cox.loc[hazard, "coef"] > 0).mean() > 0.9
    gsea = table(demo, "enrichment/hospital/survival/gsea.tsv").set_index("gene_set")
    assert gsea.loc["PLANTED_HAZARD", "fdr"] < 0.05
    assert gsea.loc["PLANTED_HAZARD", "nes"] > 0
    assert gsea.loc["PLANTED_HAZARD", "significant"]
    irrelevant = gsea[gsea.index.str.startswith("PLANTED_IRRELEVANT")]
    assert len(irrelevant) >= 1
    assert (irrelevant["fdr"] > 0.05).all()
    assert not irrelevant["significant"].any()


def test_slides_like_the_training_slides_are_told_so(demo):
    listed = table(demo, "predicted_slides.tsv")
    slides = table(demo, "slides.tsv")
    assert set(listed["slide"]) == set(slides.loc[slides["role"] == "slide", "slide"])
    # A tenth of such patients may be called out of distribution, by what it is set to.
    assert listed["out_of_distribution"].mean() <= 0.1
    assert listed["out_of_distribution_fraction"].median() < 0.1
    assert listed["tumour_fraction"].between(0.05, 0.95).mean() > 0.8


def test_the_image_adds_to_the_clinical_model(demo):
    concordance = table(demo, "survival/hospital/concordance.tsv").set_index("model")
    assert concordance.loc["clinical+image", "c_index"] > concordance.loc["clinical", "c_index"]
    shuffled = concordance.loc["shuffled", "c_index"]
    assert shuffled < concordance.loc["clinical+image", "c_index"]


def test_planted_response_is_found(demo):
    performance = table(demo, "response/hospital/performance.tsv")
    auroc = performance[(performance["metric"] == "auroc") & (performance["model"] == "image")]
    assert auroc["value"].iloc[0] > 0.7
    gsea = table(demo, "enrichment/hospital/response/gsea.tsv").set_index("gene_set")
    assert gsea.index[gsea["significant"]].tolist() == ["PLANTED_RESPONSE"]


def test_planted_patterns_of_infiltration_are_told_apart_on_predicted_maps(demo):
    """By the measure, not by its null; and the tumour's inside is where it is on measured sections."""
    slides = table(demo, "neighbourhoods/hospital/slides.tsv")
    slides = slides.drop_duplicates("patient")
    infiltrated = slides["slide"].map(lambda slide: slide_composition(1, slide).pattern)
    infiltrated = infiltrated == "infiltrated"
    assert roc_auc_score(infiltrated, slides["immune_infiltration"]) > 0.8
    assert abs(roc_auc_score(infiltrated, slides["immune_infiltration_null"]) - 0.5) < 0.25
    for section, members in table(demo, "neighbourhoods/visium/slides.tsv").groupby("slide"):
        truth = pd.read_csv(demo / f"data/simulated/{section}/truth.tsv", sep="\t")
        share = truth["compartment"].str.startswith("clone").mean()
        found = members.iloc[0]["share_malignant"] + members.iloc[0]["share_boundary"]
        assert found == pytest.approx(share, abs=0.05)


def test_leak_audit_passed_and_lists_what_it_checked(demo):
    verdict = json.loads((demo / "results/evaluation/demo/leakage.json").read_text())
    assert verdict["ok"] is True
    assert verdict["n_checks"] > 20


@pytest.fixture(scope="session")
def extended(demo, tmp_path_factory):
    """A copy of the finished study with what is off by default: its folder, its files, what ran."""
    folder = tmp_path_factory.mktemp("extended")
    again = folder / "again"
    shutil.copytree(demo, again, symlinks=True)
    extra = {
        "maps": {
            "outcomes": ["survival", "response"],
            **{"epochs": 2, "inner_folds": 2, "shuffles": 3, "channels": [4]},
            **{"published": True, "noise_draws": 3},
        },
        "survival": {"repeats": 2, "shuffles": 10, "bootstraps": 100},
        "response": {"repeats": 1, "permutations": 10, "bootstraps": 100},
        "enrichment": {"activity": True, "subtype": "S1", "patient_permutations": 100},
    }
    (folder / "extra.yaml").write_text(yaml.safe_dump(extra))
    files = ("--configfile", REPOSITORY / "config/config.yaml", folder / "extra.yaml")
    done = snakemake(again, *files)
    assert done.returncode == 0, done.said[-6000:]
    return SimpleNamespace(folder=again, files=files, done=done)


@pytest.fixture(scope="session")
def report(extended, tmp_path_factory):
    """The report of the study with all its stages, as one file."""
    page = tmp_path_factory.mktemp("report") / "report.html"
    done = snakemake(extended.folder, *extended.files, "--report", page)
    assert done.returncode == 0, done.said[-3000:]
    return page


#: One worker runs what is off by default, and builds the report for all of its tests.
reported = pytest.mark.xdist_group("report")
CATEGORIES = [
    *("00 Answer", "01 Data and quality", "02 Alignment", "03 Genes", "04 Scorecards", "05 Maps"),
    *(
        "06 Tumour",
        "07 Copy number",
        "08 Survival",
        "09 Response",
        "10 Enrichment",
        "12 Provenance",
    ),
]


@reported
def test_maps_activity_and_subtypes_of_the_finished_study(extended):
    """What is off by default: the network on the maps, activity maps, the contrast of a subtype."""
    import anndata

    again, done = extended.folder, extended.done
    assert planned_rules(done) == {
        **{"train_map_net": 2, "score_activity": 2, "fit_survival": 1, "predict_response": 1},
        **{"enrich_genes": 3, "record_configuration": 1, "draw_cohort_page": 1},
        "summarise_study": 1,
    }

    models = table(again, "survival/hospital/concordance.tsv").set_index("model")
    assert {"maps", "shuffled maps", "clinical+maps - clinical"} <= set(models.index)
    assert (models.loc[["maps", "clinical"], "repeats"] == [1, 2]).all()
    assert set(models.index[models["protocol"] == "published"]) == {
        *(
            "published maps",
            "published noise",
            "published clinical+maps",
            "published clinical+noise",
        ),
    }
    patients = set(table(again, "survival/hospital/risk.tsv", dtype={"patient": str})["patient"])
    scored = table(again, "maps/hospital/survival.tsv", dtype={"patient": str})
    assert set(scored["patient"]) == patients
    performance = table(again, "response/hospital/performance.tsv")
    assert {"maps", "clinical+maps"} <= set(performance["model"])

    activity = table(again, "activity/hospital.tsv")
    mean = activity.groupby("gene_set")[["difference", "difference_null", "moran_i"]].mean()
    assert mean.loc["PLANTED_TUMOUR", "difference"] > mean.loc["PLANTED_TUMOUR", "difference_null"]
    maps = anndata.read_h5ad(again / "results/activity/hospital.h5ad")
    assert set(maps.obs["patient"].astype(str)) == patients
    gsea = table(again, "enrichment/hospital/subtype/gsea.tsv")
    assert gsea["fdr_patients"].between(0, 1).all()
    assert (gsea["n_patients"] == len(patients)).all()


@reported
def test_report_tells_what_the_other_stages_show(report):
    text = report.read_text()
    for told in (
        "single-sample GSEA score",
        "Models called published",
        "network on the predicted maps",
    ):
        assert told in text, told


def test_the_answers_to_the_ten_questions_stand_where_the_documents_say(demo):
    text = (REPOSITORY / "docs/answers.md").read_text()
    questions = re.findall(r"(?m)^\| \d+\. .+ \| `([^`]+)` \| (.+) \|$", text)
    assert len(questions) == 10
    for file, columns in questions:
        found = table(demo, file.format(study="demo", cohort="hospital"))
        assert set(re.findall(r"`(\w+)`", columns)) <= set(found), file
    # Each metric and model of the tables is explained there.
    metrics = set(table(demo, "evaluation/demo/scorecards.tsv")["metric"])
    models = set(table(demo, "survival/hospital/concordance.tsv")["model"])
    groups = set(table(demo, "survival/hospital/risk.tsv")["group"])
    for name in metrics | models | groups:
        assert f"| `{name}`" in text, name


def test_the_verdicts_of_the_demo_have_their_numbers(demo):
    verdicts = table(demo, "summary.tsv").set_index("question")
    assert 3 <= len(verdicts) <= 6
    assert set(verdicts["grade"]) <= {"rely on it", "with care", "do not"}
    expression = verdicts.loc["Gene expression"]
    cards = table(demo, "evaluation/demo/scorecards.tsv")
    row = card(cards, protocol="patient_cv", model=expression["model"], metric="pearson_patients")
    assert expression["value"] == row["value"]
    assert expression["ceiling"] == row["ceiling"]
    # What is wrong with one slide of the simulated study is found.
    assert "H22-1" in verdicts.loc["Slides like the training slides", "because"]


def test_the_warnings_of_the_run_are_listed_and_those_that_decide_come_first(demo):
    warned = table(demo, "warnings.tsv", keep_default_na=False)
    deciding = (warned["decides"] != "").tolist()
    assert deciding == sorted(deciding, reverse=True)
    assert "survival" in set(warned["decides"])
    listed = table(demo, "slides.tsv")
    assert (listed["warnings"] >= 0).all()


@reported
def test_report_has_the_categories_in_the_order_of_the_chain(report):
    text = report.read_text()
    # The front page lists them with what they hold, each once.
    front = [text.find(f">{category}</strong>: ") for category in CATEGORIES]
    assert front == sorted(front), dict(zip(CATEGORIES, front, strict=True))
    assert front[0] > 0
    assert "{{" not in text[front[0] - 2000 : front[-1]]


@reported
def test_report_opens_without_network(report):
    text = report.read_text()
    for loaded in (r"<script[^>]*\ssrc=", r"<link[^>]*\shref=", r"@import", r"url\(\s*['\"]?http"):
        assert not re.search(loaded, text), loaded
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to open the report in")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=3000", "--host-resolver-rules=MAP * ~NOTFOUND"),
            f"file://{report}",
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    # The menu is drawn by the report's own scripts.
    for category in CATEGORIES:
        assert done.stdout.count(category) > text.count(category), category


#: Opens the results one after another and the pages of two categories, each by a click, and
#: writes what is then shown where --dump-dom finds it.
CLICKS = """
<script>
const told = [];
const shown = () => document.querySelector("nav").innerText;
const wait = () => new Promise(resolve => setTimeout(resolve, 300));
const menu = name => [...document.querySelectorAll("nav a")].find(a => a.innerText.trim() === name);
async function visit() {
  await wait();
  told.push(["first", document.body.innerText]);
  told.push(["links", document.querySelectorAll(".prose a[href]").length]);
  for (const category of ["04 Scorecards", "08 Survival"]) {
    menu(category).click();
    await wait();
    told.push([category, shown()]);
    [...document.querySelectorAll("nav a")].find(a => a.innerText.trim() === "Results").click();
    await wait();
  }
}
function tell() {
  const pre = document.createElement("pre");
  pre.id = "told";
  pre.textContent = JSON.stringify(told);
  document.body.appendChild(pre);
}
visit().catch(error => told.push(["error", String(error)])).finally(tell);
</script>
"""


@reported
def test_the_first_page_is_the_answer_and_every_link_of_it_shows_what_it_names(
    report, extended, tmp_path
):
    """Snakemake's own links to categories leave the first list on the screen (`showCategory`)."""
    text = report.read_text()
    description = json.loads(re.search(r"var workflow_desc = (\".*\");", text)[1])
    assert not re.findall(r"<a [^>]*href", description)
    answer = json.loads((extended.folder / "results/summary.json").read_text())
    order = [
        description.find(html.escape(v["finding"], quote=False)[:60]) for v in answer["verdicts"]
    ]
    assert len(order) >= 3
    assert order == sorted(order)
    assert order[0] > 0
    assert description.find("The pages, in the list") > order[-1]
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium to click in")
    page = tmp_path / "clicked.html"
    head, _, tail = text.rpartition("</body>")
    page.write_text(f"{head}{CLICKS}</body>{tail}")
    done = subprocess.run(
        [
            *(browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"),
            *("--virtual-time-budget=20000", f"file://{page}"),
        ],
        capture_output=True,
        text=True,
        timeout=300,
    )
    found = re.search(r'<pre id="told">(.*?)</pre>', done.stdout, re.DOTALL)
    told = dict(json.loads(html.unescape(found[1])))
    assert "error" not in told, told["error"]
    # What is seen first, from the top.
    assert told["first"].find("What may be relied on") < told["first"].find(
        "The pages, in the list"
    )
    assert told["links"] == 0
    assert "scorecards" in told["04 Scorecards"]
    assert "hazard ratios" in told["08 Survival"]
    assert "scorecards" not in told["08 Survival"]


@reported
def test_report_is_the_same_when_built_again(report, extended, tmp_path, monkeypatch):
    """Whatever the order of Python's sets."""
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    done = snakemake(extended.folder, *extended.files, "--report", tmp_path / "report.html")
    assert done.returncode == 0, done.said[-3000:]
    assert report.stat().st_size > 500_000
    assert (tmp_path / "report.html").read_bytes() == report.read_bytes()


# ------------------------------------------------------------------------- reruns are exact


def test_a_second_run_has_nothing_to_do_even_after_touching_every_file(demo):
    for path in [*REPOSITORY.glob("histogep/**/*.py"), *REPOSITORY.glob("workflow_scripts/*.py")]:
        path.touch()
    assert "Nothing to be done" in snakemake(demo, "--dry-run").said


def test_editing_a_module_reruns_only_what_reaches_it(demo, tmp_path):
    copy = copied_repository(tmp_path / "code")
    module = copy / "histogep/enrichment/gsea.py"
    module.write_text(module.read_text() + "\n# changed\n")
    # Not by the set of inputs: the patient sheet of the default study lies in the repository.
    done = snakemake(demo, "--dry-run", "--rerun-triggers", "params", "mtime", repository=copy)
    assert set(planned_rules(done)) == {"enrich_genes", "summarise_study"}, done.said[-3000:]


def test_every_file_of_the_study_traces_to_what_made_it(demo):
    from histogep.workflow.lineage import Lineage, find_changes

    files = table(demo, "provenance/lineage.tsv", index_col="file")
    for path in (demo / "results").rglob("*"):
        if path.is_file() and path.name not in {"lineage.tsv", ".snakemake_timestamp"}:
            inside = [path, *(folder for folder in path.parents if demo in folder.parents)]
            names = [place.relative_to(demo).as_posix() for place in inside]
            assert any(name in files.index for name in names), path
    made = files[files["rule"].notna()]
    assert made["code"].str.fullmatch("[0-9a-f]{16}").all()
    assert made["software"].str.contains('"python"').all()
    assert set(made["seed"].dropna()) == {1}
    sources = files[files["rule"].isna()]
    assert "patients.tsv" in {Path(name).name for name in sources.index}
    assert "markers.tsv" in {Path(name).name for name in files.index}
    assert sources["sha256"].str.fullmatch("[0-9a-f]{64}").all()
    lineage = Lineage(demo)
    assert find_changes(lineage, "results/survival/hospital/cox.tsv") == []
    rules = {entry.rule for entry in lineage.ancestors("results/survival/hospital/cox.tsv")}
    assert {"encode_tiles", "train_model", "package_model", "predict_slide"} <= rules


def test_tables_have_the_columns_that_the_documents_list(demo):
    """Those entries of docs/outputs that list all columns, after the word `columns`."""
    text = "\n".join(path.read_text() for path in (REPOSITORY / "docs/outputs").glob("*.md"))
    compared = 0
    for file, content in re.findall(r"(?m)^\*\*`([^`]+\.tsv)`\*\* · .+\n\n(.+)$", text):
        found = sorted(demo.glob("results/" + re.sub(r"\{\w+\}", "*", file)))
        # `genes/{study}/{fold}.tsv` and `genes/sections/{slide}.tsv` lie side by side.
        found = [path for path in found if ("sections" in path.parts) == ("sections" in file)]
        if found and re.search("[Cc]olumns `", content):
            after = re.split("[Cc]olumns ", content, maxsplit=1)[1]
            listed = re.findall(r"`([^`]+)`", after.split(". ")[0])
            # The shortest name: `folds/{study}.copies.tsv` lies beside `folds/{study}.tsv`.
            first = min(found, key=lambda path: len(path.name))
            header = first.read_text().splitlines()[0].split("\t")
            assert listed[: len(header)] == header, file
            compared += 1
    assert compared > 20


def test_changing_a_survival_setting_reruns_no_inference(demo, tmp_path):
    config = yaml.safe_load((REPOSITORY / "config/config.yaml").read_text())
    config["survival"] = {"bootstraps": 333}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    rules = planned_rules(snakemake(demo, "--dry-run", "--configfile", tmp_path / "config.yaml"))
    assert "fit_survival" in rules
    shown = {"draw_cohort_page", "record_configuration", "summarise_study"}
    assert set(rules) <= {"fit_survival", "enrich_genes"} | shown


def test_the_same_seed_gives_the_same_tables(demo, tmp_path):
    """Outcomes again, then a slide from its pixels, and a fold to the scorecards."""
    again = tmp_path / "again"
    shutil.copytree(demo, again, symlinks=True)

    def rerun(*removed, targets=()):
        for name in removed:
            path = again / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        done = snakemake(again, *targets)
        assert done.returncode == 0, done.said[-6000:]
        tables = [path for path in demo.glob("results/**/*.tsv") if "provenance" not in path.parts]
        assert len(tables) > 100
        for path in tables:
            copy = again / path.relative_to(demo)
            assert copy.read_bytes() == path.read_bytes(), copy

    rerun(*(f"results/{name}" for name in ("survival", "response", "enrichment", "patients")))
    pixels = ("data/simulated/H01-1.tiff", "results/features/H01-1.h5")
    rerun(*pixels, targets=("results/cnv/H01-1.arms.tsv",))
    # After the slide, which would be predicted by a model that follows from these folds.
    fold = [demo / f"results/models/demo/patient_cv-1/{model}" for model in ("cmunet", "ridge")]
    fold += sorted(demo.glob("results/predictions/demo/patient_cv-1/*"))
    fold += sorted(demo.glob("results/genes/demo/patient_cv-1.*"))
    assert len(fold) > 5
    scored = ("results/evaluation/demo/scorecards.tsv", "results/evaluation/demo/labels.tsv")
    rerun(
        *(str(path.relative_to(demo)) for path in fold),
        "results/evaluation",
        targets=scored,
    )


# ----------------------------------------------------------------- bad input, before any work


@pytest.fixture
def study(tmp_path):
    """Write a small study of real files and return a function that plans it."""

    def plan(*rows, extra="", name="s"):
        (tmp_path / "slides.tsv").write_text(
            "slide\tpatient\tcohort\timage\tmpp\tcounts\n" + "".join(f"{row}\n" for row in rows)
        )
        (tmp_path / "study.yaml").write_text(f"study: {name}\nslides: slides.tsv\n{extra}")
        for name in ("a.svs", "b.svs", "b.jpg"):
            (tmp_path / name).write_text("")
        for name in ("counts", "counts2"):
            (tmp_path / name).mkdir(exist_ok=True)
        return snakemake(tmp_path, "--dry-run", "--configfile", tmp_path / "study.yaml")

    return plan


GOOD = ("A\tp1\tc\ta.svs\t\tcounts", "B\tp2\tc\tb.svs\t\tcounts2")


def test_a_good_study_is_planned(study):
    done = study(*GOOD)
    assert done.returncode == 0, done.said
    assert "train_model" in planned_rules(done)
    assert "fit_survival" not in planned_rules(done)


def test_a_study_given_as_config_values_has_no_setting_of_the_demo(study, tmp_path):
    study(*GOOD)  # writes its sheet and files
    recorded = "results/provenance/configuration.yaml"
    done = snakemake(tmp_path, recorded, "--config", "study=mine", "slides=slides.tsv")
    assert done.returncode == 0, done.said
    settings = yaml.safe_load((tmp_path / recorded).read_text())
    assert settings["study"] == "mine"
    assert settings["simulation"] is None
    assert settings["genes"]["max_genes"] == 250


def test_the_study_of_the_readme_is_planned_from_its_own_folder(tmp_path):
    """Sheets and slides lie beside the configuration, results go elsewhere."""
    text = (REPOSITORY / "README.md").read_text().split("## Your own data")[1]
    sheet, config = (block.split("```")[0] for block in text.split("   ```")[1:4:2])
    header, *rows = [line[3:] for line in sheet.splitlines() if line.strip()]
    starts = [header.index(name) for name in header.split()]
    cells = [
        [line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
        for line in (header, *rows)
    ]
    mine = tmp_path / "mine"
    files = [name for row in cells[1:] for name in (*row[3:4], *row[5:]) if name]
    for name in files:
        (mine / name).parent.mkdir(parents=True, exist_ok=True)
        (mine / name).touch()
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    area = {
        "type": "Feature",
        "properties": {"objectType": "annotation", "classification": {"name": "Tumor"}},
        "geometry": {"type": "Polygon", "coordinates": [ring]},
    }
    for name in files:
        if name.endswith(".geojson"):
            (mine / name).write_text(json.dumps([area]))
    (mine / "slides.tsv").write_text("".join("\t".join(row) + "\n" for row in cells))
    (mine / "patients.tsv").write_text("patient\ttime\tevent\nT-001\t3\t1\n")
    place = ("chr1", "made", "gene", "1", "9", ".", "+", ".", 'gene_id "GENE";')
    (mine / "gencode.gtf").write_text("\t".join(place) + "\n")
    (mine / "h.all.gmt").write_text("SET\t\tGENE\n")
    (mine / "mine.yaml").write_text(config.removeprefix("yaml"))
    (tmp_path / "results_go_here").mkdir()
    done = snakemake(tmp_path / "results_go_here", "--dry-run", "--configfile", mine / "mine.yaml")
    assert done.returncode == 0, done.said
    assert planned_rules(done)["predict_slide"] == 1


def test_files_that_are_missing_and_problems_of_the_sheets_are_listed_at_once(study):
    """By Snakemake; what else is refused is in tests/workflow/test_study_reading.py."""
    extra = (
        "patients: nobody.tsv\nreferences: {gene_positions: no.gtf, gene_sets: {h: no.gmt}}\n"
        "measured: {bulk: {expression: none.tsv}}\n"
    )
    done = study("A\tp1\tc\ta.svs\t900\tcounts", GOOD[1], extra=extra)
    assert done.returncode != 0
    for name in ("nobody.tsv", "no.gtf", "no.gmt", "none.tsv"):
        assert f"{name} does not exist (looked in" in done.said
    assert "line 2: mpp '900' is not a pixel size" in done.said
    assert "Traceback" not in done.said


def test_what_a_plan_warns_of_is_marked_as_a_warning(study, tmp_path):
    (tmp_path / "patients.tsv").write_text("patient\tage\tsmoker\np1\t50\tyes\np2\t60\tno\n")
    done = study(*GOOD, extra="patients: patients.tsv\n")
    assert done.returncode == 0, done.said
    said = [line for line in done.said.splitlines() if "not used: smoker" in line]
    assert len(said) == 1
    assert said[0].startswith("warning: ")
    assert any(line.startswith("left out: ") for line in done.said.splitlines())


# ------------------------------------------------------------- train once, apply anywhere


def test_a_model_folder_is_applied_to_a_real_slide(demo, shared_data, tmp_path):
    import anndata

    (tmp_path / "results").mkdir()
    model = tmp_path / "model"
    shutil.copytree(demo / "results/model/demo", model)
    example = ("--configfile", REPOSITORY / "config/examples/apply.yaml")
    given = ("--config", f"data_root={shared_data}", f"model={model}")
    done = snakemake(tmp_path, *example, *given)
    assert done.returncode == 0, done.said[-6000:]
    predicted = anndata.read_h5ad(tmp_path / "results/expression/CMU-1.h5ad")
    assert predicted.n_obs > 20
    assert predicted.obs["tumour"].between(0, 1).all()
    # The demo's cells are drawn: a real slide must be told apart from them.
    assert predicted.obs["out_of_distribution"].mean() > 0.5
    listed = table(tmp_path, "predicted_slides.tsv").set_index("slide")
    assert listed["out_of_distribution"].all()
    stages = table(tmp_path, "provenance/stages.tsv")
    assert "left out" in set(stages["state"])
    assert os.listdir(tmp_path / "results/tiles")

    # Another model in its place, though older by its times: what it predicts is made again.
    settings = read_json(model / "settings.json") | {"seed": 99}
    settings["digest"] = folder_digest(model, settings)
    write_json(settings, model / "settings.json")
    for path in (*model.iterdir(), model):
        os.utime(path, (1e9, 1e9))
    again = planned_rules(snakemake(tmp_path, "--dry-run", *example, *given))
    assert again["predict_slide"] == 1
    assert not {"tile_slide", "encode_tiles"} & set(again)


# ------------------------------------------------------------- measured bulk expression


def test_measured_expression_goes_through_without_a_slide(tmp_path):
    import numpy as np

    rng = np.random.default_rng(0)
    ids = [f"TCGA-AA-{i:04d}" for i in range(60)]
    hazard = rng.normal(size=60)
    genes = rng.normal(size=(40, 60))
    genes[:10] += hazard
    frame = pd.DataFrame(genes.round(3), index=[f"G{i:02d}" for i in range(40)])
    frame.set_axis([f"{name}-01A" for name in ids], axis=1).to_csv(tmp_path / "bulk.csv")
    time = rng.exponential(300 / np.exp(1.5 * hazard)).round(1)
    (tmp_path / "cdr.tsv").write_text(
        "bcr_patient_barcode\tOS\tOS.time\tage_at_initial_pathologic_diagnosis\n"
        + "".join(
            f"{name}\t1\t{days}\t{50 + i % 20}\n"
            for i, (name, days) in enumerate(zip(ids, time, strict=True))
        )
        + "TCGA-AA-9999\t1\t5\t50\n"
    )
    (tmp_path / "sets.gmt").write_text("HAZARD\t\t" + "\t".join(frame.index[:10]) + "\n")
    (tmp_path / "study.yaml").write_text(
        "study: s\npatients: cdr.tsv\nmeasured: {bulk: {expression: bulk.csv, scale: zscore}}\n"
        "references: {gene_sets: {planted: sets.gmt}}\n"
        "survival: {repeats: 1, shuffles: 10, bootstraps: 100}\n"
    )
    done = snakemake(tmp_path, "--configfile", tmp_path / "study.yaml")
    assert done.returncode == 0, done.said[-6000:]
    counts = table(tmp_path, "patients/bulk.counts.tsv").set_index("what")["n"]
    assert (counts["in the table"], counts["with an event"]) == (60, 60)
    cox = table(tmp_path, "survival/bulk/cox.tsv")
    assert set(cox["gene"].head(8)) <= {f"G{i:02d}" for i in range(10)}
    gsea = table(tmp_path, "enrichment/bulk/survival/gsea.tsv").iloc[0]
    assert gsea["fdr"] < 0.05
    assert gsea["nes"] > 0
    moved = copied_repository(tmp_path / "moved")
    again = ("--dry-run", "--configfile", tmp_path / "study.yaml")
    assert "Nothing to be done" in snakemake(tmp_path, *again, repository=moved).said
    with open(moved / "histogep/resources/signatures.yaml", "a") as shipped:
        shipped.write("\n# changed\n")
    planned = planned_rules(snakemake(tmp_path, *again, repository=moved))
    assert {"copy_resource", "summarise_patients"} <= set(planned)
    stages = table(tmp_path, "provenance/stages.tsv")
    left_out = stages[stages["state"] == "left out"].set_index("stage")["reason"]
    assert left_out["model"] == "no slides: nothing to train on"


@pytest.mark.parametrize(("example", "cohorts"), [("tcga-brca", 1), ("icb", 3)])
def test_measured_examples_are_planned_on_the_real_data(shared_data, tmp_path, example, cohorts):
    configfile = REPOSITORY / f"config/examples/{example}.yaml"
    done = snakemake(
        tmp_path, "--dry-run", "--configfile", configfile, "--config", f"data_root={shared_data}"
    )
    assert done.returncode == 0, done.said
    rules = planned_rules(done)
    assert rules["summarise_patients"] == rules["fit_survival"] == cohorts
    assert "encode_tiles" not in rules


# ------------------------------------------------------------------ one bad slide, and the rest


@pytest.fixture
def cohort(demo, tmp_path):
    """A cohort of two slides and two bad ones, and another of one bad slide: call it to run."""
    simulated = demo / "data/simulated"
    (tmp_path / "zero.svs").write_bytes(b"")
    (tmp_path / "lonely.svs").write_text("this is no slide\n")
    glass = pyvips.Image.black(1500, 1500, bands=3).linear(1, 250).cast("uchar")
    glass.tiffsave(str(tmp_path / "glass.tiff"), tile=True, xres=2000, yres=2000, resunit="cm")
    rows = [f"{name}\tp{name}\tc\t{simulated / name}.tiff" for name in ("H01-1", "H02-1")]
    rows += ["zero\tp1\tc\tzero.svs", "glass\tp2\tc\tglass.tiff", "lonely\tp3\tlost\tlonely.svs"]
    (tmp_path / "slides.tsv").write_text("\n".join(["slide\tpatient\tcohort\timage", *rows, ""]))

    def run(*arguments, on_bad_slide="skip"):
        (tmp_path / "study.yaml").write_text(
            f"study: s\nslides: slides.tsv\nmodel: {demo / 'results/model/demo'}\n"
            f"on_bad_slide: {on_bad_slide}\nneighbourhoods: {{run: false}}\n"
            f"references: {{gene_positions: {simulated / 'gene_positions.tsv'}}}\n"
        )
        return snakemake(tmp_path, "--configfile", tmp_path / "study.yaml", *arguments)

    run.folder, run.good = tmp_path, simulated / "H03-1.tiff"
    return run


def predicted(folder):
    return {path.stem for path in folder.glob("results/expression/*.h5ad")}


def test_bad_slides_are_listed_and_the_cohort_goes_on_without_them(cohort):
    folder = cohort.folder
    done = cohort("--keep-going", on_bad_slide="stop")
    assert done.returncode == 1
    assert "zero bytes" in (folder / "logs/prepare_slide/zero.log").read_text()
    assert "no tissue" in (folder / "logs/tile_slide/glass.log").read_text()
    assert not (folder / "results/failed_slides.tsv").exists()
    # What the good slides have cost is not paid again when the others may be skipped.
    planned = planned_rules(cohort("--dry-run"))
    assert planned["prepare_slide"] == 2
    assert planned["encode_tiles"] == 3

    done = cohort()
    assert done.returncode == 0, done.said[-6000:]
    failed = table(folder, "failed_slides.tsv", index_col="slide")
    assert failed["rule"].to_dict() == {
        "zero": "prepare_slide",
        "glass": "tile_slide",
        "lonely": "prepare_slide",
    }
    assert "no tissue" in failed.loc["glass", "reason"]
    listed = table(folder, "slides.tsv", index_col="slide")
    assert set(listed.index[listed["status"] == "left out"]) == set(failed.index)
    assert predicted(folder) == {"H01-1", "H02-1"}
    assert set(table(folder, "cnv/c/subtypes.tsv")["slide"]) <= {"H01-1", "H02-1"}
    assert not (folder / "results/cnv/lost").exists()
    assert set(table(folder, "provenance/stages.tsv")["cohort"].dropna()) == {"c"}
    assert "Nothing to be done" in cohort("--dry-run").said
    # The records of bad slides still stop a study that may not skip them.
    done = cohort("--keep-going", on_bad_slide="stop")
    assert done.returncode == 1
    assert "zero bytes" in (folder / "logs/predict_slide/zero.log").read_text()

    # A slide that is mended joins its cohort, and no other slide is touched.
    shutil.copyfile(cohort.good, folder / "zero.svs")
    assert planned_rules(cohort("--dry-run"))["encode_tiles"] == 1
    done = cohort()
    assert done.returncode == 0, done.said[-6000:]
    assert predicted(folder) == {"H01-1", "H02-1", "zero"}
    assert "Nothing to be done" in cohort("--dry-run").said


def test_a_section_that_is_skipped_is_in_no_fold(demo, tmp_path):
    simulated = demo / "data/simulated"
    glass = pyvips.Image.black(4000, 4000, bands=3).linear(1, 250).cast("uchar")
    glass.tiffsave(str(tmp_path / "glass.tiff"), tile=True, xres=2000, yres=2000, resunit="cm")
    rows = ["slide\tpatient\tcohort\timage\tcounts"]
    for section in ("P01-1", "P02-1", "P03-1", "P04-1"):
        image = tmp_path / "glass.tiff" if section == "P02-1" else f"{simulated / section}.tiff"
        rows.append(f"{section}\tp{section}\tc\t{image}\t{simulated / section}")
    (tmp_path / "slides.tsv").write_text("\n".join([*rows, ""]))
    (tmp_path / "study.yaml").write_text(
        "study: s\nslides: slides.tsv\non_bad_slide: skip\nencoders: [{name: descriptors}]\n"
    )
    done = snakemake(tmp_path, "results/folds/s.tsv", "--configfile", tmp_path / "study.yaml")
    assert done.returncode == 0, done.said[-6000:]
    assert table(tmp_path, "failed_slides.tsv")[["slide", "rule"]].values.tolist() == [
        ["P02-1", "align_spots"]
    ]
    folds = table(tmp_path, "folds/s.tsv")
    assert set(folds["slide"]) == {"P01-1", "P03-1", "P04-1"}
    assert set(folds["fold"]) == {
        *(f"{kind}-{i}" for kind in ("patient_cv", "published") for i in (1, 2, 3)),
        "all",
    }
    # All that is still to come is planned for three sections of three patients.
    planned = planned_rules(snakemake(tmp_path, "--configfile", tmp_path / "study.yaml", "-n"))
    assert planned["select_genes"] == 7
    assert planned["score_genes"] == planned["label_spots"] == 3
    assert "encode_tiles" not in planned


RECIPES = (REPOSITORY / "docs/outputs/results-in-scanpy-squidpy-and-qupath.md").read_text()


@pytest.mark.parametrize("number", [0, 1])
def test_a_recipe_of_the_documents_runs_as_it_stands_there(demo, monkeypatch, number):
    code = re.findall(r"```python\n(.*?)```", RECIPES, re.DOTALL)[number]
    lines = [line for line in code.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith("import ")]) <= 5
    monkeypatch.chdir(demo)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    names = {}
    exec(code, names)  # what a reader would type
    assert names["spots"].n_obs > 100


def test_the_geojson_that_the_recipe_names_has_the_form_that_qupath_reads(demo):
    """As of RFC 7946 and of QuPath's own export: features with geometry, and the type of object."""
    path = re.search(r"results/expression/[\w-]+\.geojson", RECIPES)[0]
    content = json.loads((demo / path).read_text())
    assert content["type"] == "FeatureCollection"
    assert content["features"]
    for feature in content["features"]:
        assert feature["type"] == "Feature"
        assert feature["geometry"]["type"] in ("Polygon", "MultiPolygon")
        assert feature["properties"]["objectType"] in ("annotation", "detection", "tile")
        for part in feature["geometry"]["coordinates"]:
            ring = part if feature["geometry"]["type"] == "Polygon" else part[0]
            assert ring[0] == ring[-1]
