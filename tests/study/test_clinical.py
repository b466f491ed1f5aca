from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from histogep.errors import InputError
from histogep.study.clinical import fold_stage, read_clinical
from histogep.study.covariates import (
    age_number,
    event_number,
    response_number,
    sex_number,
    stage_number,
)

WORKBOOK = "tcga/TCGA-CDR-SupplementalTableS1.xlsx"


@pytest.fixture(scope="module")
def raw_cdr(shared_data):
    return pd.read_excel(shared_data / WORKBOOK, index_col=0).set_index("bcr_patient_barcode")


@pytest.fixture(scope="module")
def cdr(raw_cdr, tmp_path_factory):
    """The workbook's table as text, which is read faster."""
    path = tmp_path_factory.mktemp("cdr") / "cdr.tsv"
    raw_cdr.to_csv(path, sep="\t")
    return path


def test_the_workbook_is_read_as_its_table_is(shared_data, cdr):
    pd.testing.assert_frame_equal(read_clinical(shared_data / WORKBOOK), read_clinical(cdr))


@pytest.mark.parametrize("endpoint", ["OS", "PFI", "DSS", "DFI"])
def test_tcga_cdr_keeps_every_patient_and_event_of_the_table(cdr, raw_cdr, endpoint, caplog):
    sheet = read_clinical(cdr, endpoint=endpoint)
    redacted = raw_cdr.index[raw_cdr["Redaction"] == "Redacted"]
    assert set(sheet.index) == set(raw_cdr.index) - set(redacted)
    assert "57 patients marked as redacted are left out" in caplog.text
    theirs = raw_cdr.loc[sheet.index]
    both = theirs[endpoint].notna() & theirs[f"{endpoint}.time"].notna()
    assert sheet["event"].notna().equals(both)
    assert sheet["event"].sum() == theirs.loc[both, endpoint].sum()
    np.testing.assert_allclose(
        sheet.loc[both, "time"] * 30.44, theirs.loc[both, f"{endpoint}.time"]
    )
    assert "I/II NOS (14)" in caplog.text
    assert "Stage X (13)" in caplog.text


def test_stages_of_tcga_cdr_fold_to_four_or_none(cdr, raw_cdr):
    sheet = read_clinical(cdr)
    ajcc = raw_cdr.loc[sheet.index, "ajcc_pathologic_tumor_stage"]
    assert set(sheet["stage"]) == {"", "I", "II", "III", "IV"}
    assert (sheet.loc[ajcc == "Stage IIIC", "stage"] == "III").all()
    assert (sheet.loc[ajcc.isin(["Stage I", "Stage IA", "Stage IB"]), "stage"] == "I").all()
    # Ovarian cancer has a clinical stage only.
    ovary = raw_cdr.loc[sheet.index, "type"] == "OV"
    assert (ajcc[ovary] == "[Not Applicable]").all()
    assert (sheet.loc[ovary, "stage"] != "").mean() > 0.9
    assert sheet["stage"].map(stage_number).notna().equals(sheet["stage"] != "")


@pytest.mark.parametrize(
    ("text", "stage"),
    [
        ("IIA (T2N0)", "II"), ("Stage IIIB (pT3 N1 M0)", "III"), ("II (III)", ""),
        ("Stage IIIC1", "III"), ("Stage IA2", "I"), ("IIb", "II"), ("STAGE IVC", "IV"), ("I", "I"),
        ("Stage 0", ""), ("IS", ""), ("Stage IS", ""), ("I/II NOS", ""), ("Stage X", ""), ("", ""),
    ],
)  # fmt: skip
def test_stages_fold(text, stage):
    assert fold_stage(text) == stage


CBIOPORTAL = (
    "#Patient Identifier\tOverall Survival Status\n#STRING\tSTRING\n"
    "PATIENT_ID\tOS_STATUS\tOS_MONTHS\tPFS_STATUS\tPFS_MONTHS\tAGE\tSEX\t"
    "AJCC_PATHOLOGIC_TUMOR_STAGE\n"
    "TCGA-A1-A0SB\t0:LIVING\t8.5\t0:CENSORED\t8.5\t70\tFemale\tSTAGE I\n"
    "TCGA-A1-A0SD\t1:DECEASED\t14.4\t1:PROGRESSION\t10\t59\tMale\tSTAGE IIA\n"
    "TCGA-A1-A0SE\t[Not Available]\t[Not Available]\t\t\tNA\t\t[Discrepancy]\n"
)


def test_cbioportal_by_file_and_by_its_download(tmp_path):
    path = tmp_path / "data_clinical_patient.txt"
    path.write_text(CBIOPORTAL)
    sheet = read_clinical(path)
    assert sheet["event"].tolist()[:2] == [0, 1]
    assert sheet["time"].tolist()[:2] == [8.5, 14.4]
    assert sheet.loc["TCGA-A1-A0SE", ["time", "event", "age"]].isna().all()
    assert sheet["stage"].tolist() == ["I", "II", ""]
    assert sheet["sex"].tolist() == ["Female", "Male", ""]
    assert read_clinical(path, endpoint="PFI")["time"].tolist()[1] == 10
    with pytest.raises(InputError, match=r"no columns of endpoint DSS, but those of OS, PFI"):
        read_clinical(path, endpoint="DSS")
    path.write_text(
        "Patient ID\tOverall Survival (Months)\tOverall Survival Status\tDiagnosis Age\n"
        "TCGA-A1-A0SB\t8.5\t0:LIVING\t70\n"
    )
    sheet = read_clinical(path)
    assert sheet.loc["TCGA-A1-A0SB", ["time", "event", "age"]].tolist() == [8.5, 0, 70]


def test_predictior_and_porpoise_tables(shared_data):
    hugo = read_clinical(shared_data / "icb/ICB_small_Hugo_clin.csv")
    assert (hugo["response"].sum(), hugo["response"].notna().sum(), hugo["event"].sum()) == (
        14, 27, 12,
    )  # fmt: skip
    imvigor = read_clinical(shared_data / "icb/ICB_small_Mariathasan_clin.csv")
    assert (imvigor["response"].sum(), (imvigor["response"] == 0).sum()) == (42, 91)
    brca = read_clinical(shared_data / "tcga/tcga_brca_all_clean.csv.zip")
    assert (len(brca), brca["event"].sum()) == (956, 130)
    assert (brca["sex"] == "female").sum() == 945


def test_an_own_sheet_stays_as_strict_as_it_is(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text("patient\ttime\tevnt\nA\t1\t0\n")
    with pytest.raises(InputError, match="unknown column 'evnt'"):
        read_clinical(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("case_id,OS,OS.time\nA,1,-3\nB,0,4\n", "negative times: A"),
        ("case_id,OS,OS.time\nA,2,3\n", "events other than 0 and 1: A"),
        ("case_id,OS,OS.time\nA,1,soon\n", r"column 'OS.time': \['soon'\] are not numbers"),
        ("case_id,response\nA,maybe\n", "neither R nor NR.*A 'maybe'"),
        ("case_id,OS,OS.time\nA,1,3\nA,0,3\n", "several rows with different outcomes: A"),
        ("id,OS,OS.time\nA,1,3\n", "no column of patients; known names"),
        ("", "is empty"),
    ],
)
def test_refusals(tmp_path, text, message):
    path = tmp_path / "clinical.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_clinical(path)


def test_no_workbook_and_an_archive_of_two_files_are_refused(tmp_path):
    import zipfile

    path = tmp_path / "clinical.xlsx"
    path.write_text("no workbook")
    with pytest.raises(InputError, match="is not an Excel workbook"):
        read_clinical(path)
    with zipfile.ZipFile(tmp_path / "two.csv.zip", "w") as archive:
        archive.writestr("a.csv", "patient\n")
        archive.writestr("b.csv", "patient\n")
    with pytest.raises(InputError, match="2 files in the archive"):
        read_clinical(tmp_path / "two.csv.zip")


def test_an_unreadable_sex_is_missing_for_that_patient_and_counted(tmp_path, caplog):
    path = tmp_path / "cdr.tsv"
    path.write_text(
        "bcr_patient_barcode\tOS\tOS.time\tgender\nTCGA-AA-0001\t1\t5\tMALE\nTCGA-AA-0002\t1\t5\t9\n"
    )
    assert read_clinical(path)["sex"].tolist() == ["MALE", ""]
    assert "1 of 2 cells cannot be read and count as missing: '9' (1)" in caplog.text


def gdc(n=30, *, event=None):
    """A clinical.tsv of the GDC: two rows for each case, `'--` for what is not there."""
    rng = np.random.default_rng(0)
    dead = np.arange(n) % 3 == 0 if event is None else event
    days = rng.integers(30, 4000, n).astype(str)
    rows = []
    for i in range(n):
        case = {
            "case_id": f"uuid-{i}",
            "case_submitter_id": f"TCGA-AA-{i:04d}",
            "age_at_diagnosis": str(20000 + i),
            "gender": "not reported" if i == 1 else "female",
            "vital_status": "Not Reported" if i == 2 else "Dead" if dead[i] else "Alive",
            "days_to_death": days[i] if dead[i] else "'--",
            "days_to_last_follow_up": "'--" if dead[i] else days[i],
            "ajcc_pathologic_stage": "Not Reported" if i == 4 else "Stage IIIC",
            "treatment_type": "Radiation",
        }
        # The second row of a case is of a treatment, its follow-up an earlier one.
        earlier = case["days_to_last_follow_up"]
        earlier = "'--" if earlier == "'--" else str(int(earlier) - 20)
        rows += [{**case, "days_to_last_follow_up": earlier}, case]
    return pd.DataFrame(rows), days, dead


@pytest.mark.parametrize("style", ["old", "new", "hub"])
def test_the_clinical_table_of_the_gdc(tmp_path, style, caplog):
    table, days, dead = gdc()
    places = {"case_submitter_id": "cases.submitter_id", "case_id": "cases.case_id"}
    places |= {name: f"demographic.{name}" for name in ("gender", "vital_status", "days_to_death")}
    places |= {
        name: f"diagnoses.{name}"
        for name in ("age_at_diagnosis", "ajcc_pathologic_stage", "days_to_last_follow_up")
    }
    if style == "new":
        table = table.rename(columns=places)
    if style == "hub":
        table = table.drop(columns="case_id").rename(
            columns={name: ".".join(reversed(place.split("."))) for name, place in places.items()}
            | {"case_submitter_id": "submitter_id"}
        )
    path = tmp_path / "clinical.tsv"
    table.to_csv(path, sep="\t", index=False)
    sheet = read_clinical(path)
    assert len(sheet) == 30
    known = [i for i in range(30) if i != 2]
    ids = [f"TCGA-AA-{i:04d}" for i in known]
    np.testing.assert_allclose(sheet.loc[ids, "time"] * 30.44, [int(days[i]) for i in known])
    assert sheet.loc[ids, "event"].tolist() == [float(dead[i]) for i in known]
    assert sheet.loc["TCGA-AA-0002", ["time", "event"]].isna().all()
    assert sheet["sex"].tolist() == ["female", ""] + ["female"] * 28
    assert sheet.loc["TCGA-AA-0004", "stage"] == ""
    assert sheet["stage"].value_counts()["III"] == 29
    np.testing.assert_allclose(sheet["age"].min(), 20000 / 365.25)
    if style == "old":
        assert "columns that are not used: case_id, treatment_type" in caplog.text
    with pytest.raises(InputError, match="no columns of endpoint PFI, but those of OS"):
        read_clinical(path, endpoint="PFI")


def test_rows_of_a_case_that_contradict_each_other_are_refused(tmp_path):
    table, _, _ = gdc()
    path = tmp_path / "clinical.tsv"
    for column, value, message in (
        ("vital_status", "Alive", "both alive and dead in several rows: TCGA-AA-0000"),
        ("days_to_death", "77", "several rows with different outcomes: TCGA-AA-0000"),
        ("vital_status", "perhaps", "vital_status is 'perhaps': neither alive nor dead"),
    ):
        changed = table.copy()
        changed.loc[0, column] = value
        changed.to_csv(path, sep="\t", index=False)
        with pytest.raises(InputError, match=message):
            read_clinical(path)


def test_survival_of_ucsc_xena_and_the_tcgas_own_file(tmp_path):
    path = tmp_path / "xena.tsv"
    path.write_text(
        "sample\tOS\t_PATIENT\tOS.time\n"
        "TCGA-AA-0001-01A\t1\tTCGA-AA-0001\t400\nTCGA-AA-0001-11A\t1\tTCGA-AA-0001\t400\n"
    )
    sheet = read_clinical(path)
    assert sheet.index.tolist() == ["TCGA-AA-0001"]
    assert sheet["time"].tolist() == [400 / 30.44]
    path.write_text("sample\tOS\tOS.time\nTCGA-AA-0001-01A\t0\t400\n")
    assert read_clinical(path)["event"].tolist() == [0]
    path.write_text(
        "bcr_patient_uuid\tbcr_patient_barcode\tgender\tvital_status\tlast_contact_days_to\t"
        "death_days_to\nbcr_patient_uuid\tbcr_patient_barcode\tgender\tvital_status\t"
        "days_to_last_followup\tdays_to_death\nCDE_ID:\tCDE_ID:2003301\tCDE_ID:2200604\tCDE_ID:5\t"
        "CDE_ID:3008273\tCDE_ID:3165475\nx\tTCGA-A1-A0SB\tFEMALE\tAlive\t259\t[Not Applicable]\n"
    )
    sheet = read_clinical(path)
    assert sheet.index.tolist() == ["TCGA-A1-A0SB"]
    assert sheet["time"].tolist() == [259 / 30.44]


def test_cbioportal_as_it_was_without_codes(tmp_path):
    path = tmp_path / "data_clinical_patient.txt"
    path.write_text(
        "PATIENT_ID\tOS_STATUS\tOS_MONTHS\tDFS_STATUS\tDFS_MONTHS\n"
        "P1\tLIVING\t8.5\tDiseaseFree\t8.5\nP2\tDECEASED\t14\tRecurred/Progressed\t10\n"
        "P3\t[Not Available]\t[Not Available]\t\t\n"
    )
    assert read_clinical(path)["event"].tolist()[:2] == [0, 1]
    assert read_clinical(path, endpoint="DFI")["event"].tolist()[:2] == [0, 1]
    path.write_text("PATIENT_ID\tOS_STATUS\tOS_MONTHS\nP1\t0:DECEASED\t8.5\n")
    with pytest.raises(InputError, match="events other than 0 and 1: P1 '0:DECEASED'"):
        read_clinical(path)


OWN = "Patient;Zeit;Event;Alter;Geschlecht;Stadium;Response;Zentrum\n"
ROWS = [
    "P1;12,5;ja;60,5;w;IIb;nein;Köln",
    "P2;7;nein;70;m;Stadium III;ja;Köln",
    "P3;30,25;lebt;k.A.;männlich;T2;k.A.;Bonn",
    "P4;1;verstorben;>89;weiblich;4;1.0;Bonn",
]


@pytest.mark.parametrize("form", ["csv", "tsv", "xlsx", "utf-16"])
def test_a_table_from_a_german_excel_is_read_alike_in_every_format(tmp_path, form, caplog):
    path = tmp_path / f"patienten.{form if form != 'utf-16' else 'txt'}"
    text = OWN + "\n".join(ROWS) + "\n"
    if form == "csv":
        path.write_bytes(text.replace("\n", "\r\n").encode("cp1252"))
    elif form == "xlsx":
        table = pd.DataFrame([row.split(";") for row in ROWS], columns=OWN.strip().split(";"))
        table["Zeit"] = [12.5, 7, 30.25, 1]
        table.to_excel(path, index=False)
    else:
        path.write_text(text.replace(";", "\t"), encoding="utf-16" if form == "utf-16" else "utf-8")
    sheet = read_clinical(path, columns={"time": "Zeit"})
    assert sheet["time"].tolist() == [12.5, 7, 30.25, 1]
    assert sheet["event"].tolist() == [1, 0, 0, 1]
    assert sheet["age"].fillna(-1).tolist() == [60.5, 70, -1, 90]
    assert sheet["sex"].tolist() == ["w", "m", "männlich", "weiblich"]
    assert sheet["stage"].tolist() == ["II", "III", "", "IV"]
    assert sheet["response"].fillna(-1).tolist() == [0, 1, -1, 1]
    assert "columns that are not used: Zentrum" in caplog.text
    assert ("read as Windows-1252 (such as Köln" in caplog.text) == (form == "csv")


def test_a_table_from_a_french_excel(tmp_path):
    path = tmp_path / "patients.csv"
    path.write_bytes(
        "patient;time;event;sexe;stade\nP1;12,5;oui;Femme;IIIA\nP2;3;décédé;H;stade IV\n"
        "P3;4;vivant;inconnu;non renseigné\n".encode("cp1252")
    )
    sheet = read_clinical(path)
    assert sheet["event"].tolist() == [1, 1, 0]
    assert sheet["sex"].tolist() == ["Femme", "H", ""]
    assert sheet["stage"].tolist() == ["III", "IV", ""]
    renamed = read_clinical(path, columns={"sex": "sexe", "stage": "stade"})
    pd.testing.assert_frame_equal(renamed, sheet)


def test_the_same_rules_hold_for_every_format(tmp_path):
    rows = [["patient", "time", "event", "response", "centre"], ["A", "3", "1", "1.0", "x"]]
    frames = []
    for separator, name in ((",", "a.csv"), ("\t", "a.tsv")):
        path = tmp_path / name
        path.write_text("\n".join(separator.join(row) for row in rows) + "\n")
        frames.append(read_clinical(path))
    pd.DataFrame(rows[1:], columns=rows[0]).to_excel(tmp_path / "a.xlsx", index=False)
    frames.append(read_clinical(tmp_path / "a.xlsx"))
    for frame in frames:
        pd.testing.assert_frame_equal(frame, frames[0])
        assert frame["response"].tolist() == [1]
    for separator, name in ((",", "a.csv"), ("\t", "a.tsv")):
        path = tmp_path / name
        path.write_text(
            separator.join(("patient", "tiem", "event")) + f"\nA{separator}1{separator}1\n"
        )
        with pytest.raises(InputError, match="unknown column 'tiem', did you mean 'time'"):
            read_clinical(path)


def cohort(times, **columns):
    n = len(times)
    return pd.DataFrame(
        {
            "patient": [f"P{i}" for i in range(n)],
            "time": times,
            "event": [0, 1] * (n // 2),
            **columns,
        }
    )


@pytest.mark.parametrize("form", ["own", "cbioportal", "porpoise"])
def test_days_given_as_months_are_refused_with_the_right_declaration(tmp_path, form):
    table = cohort(np.random.default_rng(0).exponential(1000, 60).round())
    names = {
        "own": {},
        "cbioportal": {"patient": "PATIENT_ID", "time": "OS_MONTHS", "event": "OS_STATUS"},
        "porpoise": {"patient": "case_id", "time": "survival_months", "event": "censorship"},
    }[form]
    path = tmp_path / "patients.tsv"
    table.rename(columns=names).to_csv(path, sep="\t", index=False)
    right = "time_days" if form == "own" else rf"columns: {{time_days: {names['time']}, event: "
    with pytest.raises(InputError, match=rf"counts months, but the longest time is .*{right}"):
        read_clinical(path)
    if form == "own":
        table = table.rename(columns={"time": "time_days"})
        table.to_csv(path, sep="\t", index=False)
        read = read_clinical(path)
    else:
        read = read_clinical(path, columns={"time_days": names["time"], "event": names["event"]})
    wanted = table.set_index("patient").iloc[:, 0] / 30.44
    np.testing.assert_allclose(read["time"], wanted[read.index])


def test_years_given_as_months_and_months_given_as_days_are_refused(tmp_path):
    path = tmp_path / "patients.tsv"
    draws = np.random.default_rng(0).exponential(3, 60)
    cohort(draws).to_csv(path, sep="\t", index=False)
    with pytest.raises(InputError, match="if these are years, name the column time_years"):
        read_clinical(path)
    cohort(draws).rename(columns={"time": "time_years"}).to_csv(path, sep="\t", index=False)
    assert read_clinical(path)["time"].max() == pytest.approx(12 * draws.max())
    cohort(draws).rename(columns={"time": "time_months"}).to_csv(path, sep="\t", index=False)
    assert read_clinical(path)["time"].max() == pytest.approx(draws.max())
    for times in (draws * 10, (draws * 10).round()):
        cohort(times).rename(
            columns={"patient": "sample", "time": "OS.time", "event": "OS"}
        ).to_csv(path, sep="\t", index=False)
        with pytest.raises(InputError, match=r"columns: \{time_months: OS\.time, event: OS\}"):
            read_clinical(path)


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        ([21915.0] * 20, "these are days .*name the column age_days"),
        ([720.0] * 20, "these are months"),
        ([60.0] * 19 + [200.0], "line 21: age 200 is not an age in years"),
        ([60.0] * 19 + [-3.0], "line 21: age -3 is not an age in years"),
    ],
)
def test_ages_that_are_no_years_are_refused(tmp_path, ages, message):
    path = tmp_path / "patients.csv"
    cohort([12.0, 40.0] * 10, age=ages).to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_clinical(path)
    published = cohort([12.0, 40.0] * 10, AGE=ages).rename(
        columns={"patient": "PATIENT_ID", "time": "OS_MONTHS", "event": "OS_STATUS"}
    )
    published.to_csv(path, index=False)
    with pytest.raises(InputError, match=message):
        read_clinical(path)


@pytest.mark.parametrize(
    ("time", "message"),
    [
        ("inf", "are infinite"),
        ("1e400", "are not numbers"),
        ("2020-01-31", "are dates, not times"),
        ("31.01.2020", "are dates, not times"),
        ("-1", "negative"),
        ("1.234,5", "are not numbers: write them as 1234.5, without thousands or units"),
    ],
)
def test_times_that_are_none_are_refused(tmp_path, time, message):
    for header in ("patient\ttime\tevent\n", "PATIENT_ID\tOS_MONTHS\tOS_STATUS\n"):
        path = tmp_path / "patients.tsv"
        path.write_text(f"{header}A\t{time}\t1\nB\t3\t0\n")
        with pytest.raises(InputError, match=message):
            read_clinical(path)


@pytest.mark.parametrize(
    ("convert", "words"),
    [
        (
            event_number,
            {
                1: "1 1.0 dead DECEASED Died ja oui Yes TRUE verstorben décédée décès 1:DECEASED",
                0: "0 alive LIVING nein non lebt Vivant censored 0:LIVING 0:CENSORED false",
                None: "NE '-- [Redacted] unknown k.A. inconnu NA n/a #N/A .",
            },
        ),
        (
            stage_number,
            {
                1: "I Ia IB1 1 Stage-I T-none".replace(" T-none", ""),
                2: "II IIb Ⅱ 2.0 2b pII STAGE_II",
                3: "IIIC1 iii stade:III",
                4: "IV IVC 4",
                None: "X NE unbekannt '--",
            },
        ),
        (
            sex_number,
            {0: "F w Weiblich Femme féminin", 1: "M male männlich Homme h", None: "NE x"},
        ),
        (
            age_number,
            {90: ">89 90+ ≥90 >=90", 60.5: "60,5 60.5", 65: "65y 65.0", None: "NA unknown"},
        ),
        (
            response_number,
            {1: "R CR pr 1.0 ja Oui TRUE", 0: "NR SD PD 0.0 nein non", None: "NE NA '--"},
        ),
    ],
)
def test_words_for_what_is_known_and_what_is_not(convert, words):
    for value, texts in words.items():
        for text in texts.split():
            got = convert(text)
            assert got == value if value is not None else np.isnan(got), text
    for text in ("perhaps", "1/0", "7;8"):
        with pytest.raises(InputError):
            convert(text)


def test_a_quote_in_free_text_loses_nobody(raw_cdr, tmp_path):
    """Case: two cells that begin with a quote swallowed 600 of 1,097 patients of TCGA-BRCA."""
    cdr = raw_cdr.reset_index()
    cdr = cdr[(cdr["type"] == "BRCA") & cdr["OS.time"].notna()].reset_index(drop=True)
    status = cdr["OS"].map({1: "1:DECEASED", 0: "0:LIVING"})
    lines = ["#Patient\tOther\tMonths\tStatus", "PATIENT_ID\tOTHER\tOS_MONTHS\tOS_STATUS"]
    for i, name in enumerate(cdr["bcr_patient_barcode"]):
        other = '"12 o clock' if i in (99, 699) else "none"
        lines.append(f"{name}\t{other}\t{cdr['OS.time'][i] / 30.44:.2f}\t{status[i]}")
    path = tmp_path / "data.txt"
    path.write_text("\n".join(lines) + "\n")
    sheet = read_clinical(path)
    assert len(sheet) == len(cdr)
    np.testing.assert_allclose(
        sheet.loc[cdr["bcr_patient_barcode"], "time"], (cdr["OS.time"] / 30.44).round(2)
    )


def test_alive_with_a_day_of_death_is_refused(tmp_path):
    path = tmp_path / "clinical.tsv"
    path.write_text(
        "case_submitter_id\tvital_status\tdays_to_death\tdays_to_last_follow_up\n"
        "A\tAlive\t'--\t900\nB\tAlive\t300\t200\n"
    )
    with pytest.raises(InputError, match="alive by vital_status, but with a day of death: B"):
        read_clinical(path)


@pytest.mark.parametrize(
    ("female", "male"),
    [
        ("weiblich", "männlich"), ("w", "m"), ("Femme", "Homme"), ("F", "H"), ("Mujer", "Varón"),
        ("Donna", "Uomo"), ("vrouw", "man"), ("feminino", "masculino"), ("Kobieta", "Mężczyzna"),
    ],
)  # fmt: skip
def test_words_of_sex_end_as_one_coding(tmp_path, female, male):
    from histogep.study.covariates import clinical_numbers

    path = tmp_path / "patients.tsv"
    path.write_text(f"patient\tsex\nA\t{female}\nB\t{male}\nC\t\n", encoding="utf-8")
    sex = clinical_numbers(read_clinical(path))["sex"]
    assert sex[["A", "B"]].tolist() == [0, 1]
    assert np.isnan(sex["C"])


@pytest.mark.parametrize("column", ["age", "age_days", "age_at_diagnosis"])
def test_days_back_to_birth_are_named(tmp_path, column):
    path = tmp_path / "patients.tsv"
    path.write_text(f"patient\t{column}\n" + "".join(f"P{i}\t-2{i:04}\n" for i in range(30)))
    with pytest.raises(
        InputError, match=f"column '{column}' has negative ages, .*without the minus"
    ):
        read_clinical(path)


def test_a_title_above_the_names_of_the_columns_is_named(tmp_path):
    path = tmp_path / "patients.tsv"
    path.write_text("Our study\npatient\tage\nA\t60\n")
    with pytest.raises(InputError, match="is it a title"):
        read_clinical(path)


def test_the_sheet_in_sight_is_read_and_merged_cells_are_refused(tmp_path):
    from openpyxl import Workbook

    path = tmp_path / "merged.xlsx"
    book = Workbook()
    book.active.append(["old"])
    book.active.sheet_state = "hidden"
    sheet = book.create_sheet("now")
    for row in (["patient", "stage"], ["A", "II"], ["B", None], ["C", "I"]):
        sheet.append(row)
    book.save(path)
    assert read_clinical(path)["stage"].tolist() == ["II", "", "I"]
    sheet.merge_cells("B2:B3")  # B has stage II for whoever reads it
    book.save(path)
    with pytest.raises(InputError, match=r"line 2: cells are merged \(B2:B3\).*unmerge them"):
        read_clinical(path)


def test_a_formula_without_a_value_and_a_far_cell_are_refused(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    book.active.append(["patient", "time", "event"])
    book.active.append(["A", "=1+1", 1])
    book.save(tmp_path / "a.xlsx")
    with pytest.raises(InputError, match="line 2: column 2 holds a formula without its value"):
        read_clinical(tmp_path / "a.xlsx")
    for first in ([], ["patient", "time", "event"]):
        book = Workbook()
        if first:
            book.active.append(first)
        book.active["XFD1048576"] = "x"
        book.save(tmp_path / "far.xlsx")
        with pytest.raises(InputError, match=r"far\.xlsx, line 1048576: a cell in column 16384"):
            read_clinical(tmp_path / "far.xlsx")


@pytest.mark.parametrize("turned", [False, True])
def test_rows_of_a_case_that_differ_do_not_count_by_their_order(tmp_path, caplog, turned):
    """Several diagnoses of a case, as in the GDC's table: no row is the patient's by being first."""
    head = "case_submitter_id\tvital_status\tdays_to_death\tdays_to_last_follow_up\t"
    head += "age_at_index\tgender\tajcc_pathologic_stage\n"
    rows = [
        "TCGA-AA-0001\tDead\t100\t90\t60\tmale\tStage IIA\n",
        "TCGA-AA-0001\tDead\t100\t90\t58\tM\tStage IV\n",
        "TCGA-AA-0002\tAlive\t'--\t500\t70\tfemale\tStage IIA\n",
        "TCGA-AA-0002\tAlive\t'--\t600\t70\tmale\tStage IIB\n",
        "TCGA-AA-0003\tAlive\t'--\t400\t71\tfemale\t'--\n",
        "TCGA-AA-0003\tAlive\t'--\t400\t71\t'--\tStage I\n",
    ]
    path = tmp_path / "clinical.tsv"
    path.write_text(head + "".join(rows[::-1] if turned else rows))
    table = read_clinical(path)
    assert table["age"].tolist() == [58, 70, 71]
    assert [sex_number(sex) for sex in table["sex"].iloc[[0, 2]]] == [1, 0]
    assert table["sex"].iloc[1] == ""
    assert table["stage"].tolist() == ["", "II", "I"]
    assert "1 patients have rows of different stage, which counts as missing: TCGA-AA-0001" in (
        caplog.text
    )
    assert "rows of different sex, which counts as missing: TCGA-AA-0002" in caplog.text
