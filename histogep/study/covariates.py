"""Convert clinical covariates and outcomes to numbers, from the words that tables use for them.

English, German and French words are recognised, in any case and with or without accents. Words for
"unknown" give a missing value; any other text is an InputError, and the reader of a table decides
whether only that value is lost (a covariate) or the table is refused (an outcome).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import numpy as np
import pandas as pd

from histogep.errors import InputError

_STAGE_TEXT = re.compile(
    r"(?:(?:ajcc|uicc|figo|pathologic|pathological|clinical|tumor|tumour|anatomic|p|c)[\s_-]*)*"
    r"(?:stage|stadium|stade|st\.)?[\s:_-]*"
    r"(iv|iii|ii|i|[1-4])(?:\.0)?\s*[abcd]?\s*(?:[0-9]|i{1,3})?"
    r"(?:\s*\(\s*[pcy]{0,2}t[^()]*\))?"  # `IIA (T2N0)`
)
#: Stages as numbers.
STAGES = {"I": 1.0, "II": 2.0, "III": 3.0, "IV": 4.0}
_SEX = {
    **dict.fromkeys(("f", "female", "w", "woman", "fem", "females", "women"), 0.0),
    **dict.fromkeys(("vrouw", "vrouwelijk", "donna", "femmina", "mulher", "feminino"), 0.0),
    **dict.fromkeys(("kobieta", "kvinna", "kvinde", "kvinne"), 0.0),
    **dict.fromkeys(("mannelijk", "uomo", "maschio", "maschile", "homem", "varon"), 1.0),
    **dict.fromkeys(("mezczyzna", "mand"), 1.0),
    **dict.fromkeys(
        ("weiblich", "frau", "femme", "feminin", "feminine", "femenino", "mujer", "femminile"), 0.0
    ),
    **dict.fromkeys(("m", "male", "man", "males", "men"), 1.0),
    **dict.fromkeys(("maennlich", "mannlich", "mann", "homme", "h", "masculin", "masculine"), 1.0),
    **dict.fromkeys(("masculino", "hombre"), 1.0),
}
#: Ways of writing that nothing is known, without accents and in lower case.
UNKNOWN = {
    *("", "na", "n/a", "n.a.", "n.a", "nan", "none", "null", "nil", "unknown", "unk", "unkn"),
    *("unknown/not reported", "not reported", "not available", "not applicable", "not known"),
    *(
        "not evaluated",
        "not evaluable",
        "not assessed",
        "not determined",
        "not done",
        "not recorded",
    ),
    *(
        "not specified",
        "not provided",
        "not allowed to collect",
        "ne",
        "n.e.",
        "nd",
        "n.d.",
        "missing",
    ),
    *("unspecified", "indeterminate", "undetermined", "discrepancy", "pending", "redacted"),
    *("-", "--", "---", "'-", "'--", "'---", ".", "..", "/", "*", "_"),
    *("#n/a", "#na", "#value!", "#ref!", "#div/0!", "#name?", "#num!", "#null!", "<na>"),
    *("unbekannt", "k.a.", "k. a.", "ka", "keine angabe", "nicht bekannt", "fehlt", "fehlend"),
    *("nicht verfugbar", "nicht verfuegbar", "nicht erhoben", "offen"),
    *("inconnu", "inconnue", "non connu", "non connue", "non renseigne", "non renseignee"),
    *("non disponible", "non determine", "nsp", "manquant", "manquante", "desconocido"),
}
_STAGE_UNKNOWN = {"x", "stage x", "stadium x", "stade x", "stage unknown", "stage not reported"}
_EVENT = {
    **dict.fromkeys(
        ("1", "1.0", "yes", "y", "true", "t", "ja", "j", "oui", "o", "si", "event"), 1.0
    ),
    **dict.fromkeys(("dead", "deceased", "died", "death", "exitus", "tot", "verstorben"), 1.0),
    **dict.fromkeys(("gestorben", "todesfall", "decede", "decedee", "mort", "morte", "deces"), 1.0),
    **dict.fromkeys(("dead with tumor", "dead of disease", "died of disease"), 1.0),
    **dict.fromkeys(("fallecido", "fallecida"), 1.0),
    **dict.fromkeys(("progression", "progressed", "recurrence", "recurred", "relapse"), 1.0),
    **dict.fromkeys(("relapsed", "recurred/progressed", "recurred/progression", "rezidiv"), 1.0),
    **dict.fromkeys(("progress", "progredient", "recidive", "ereignis", "evenement"), 1.0),
    **dict.fromkeys(("0", "0.0", "no", "n", "false", "f", "nein", "non", "no event"), 0.0),
    **dict.fromkeys(("alive", "living", "lebt", "lebend", "lebendig", "am leben", "vivant"), 0.0),
    **dict.fromkeys(("vivante", "en vie", "vivo", "viva", "survived", "surviving"), 0.0),
    **dict.fromkeys(("alive with disease", "alive or dead tumor free", "awd", "ned"), 0.0),
    **dict.fromkeys(("no evidence of disease", "censored", "censor", "zensiert", "censure"), 0.0),
    **dict.fromkeys(("disease free", "diseasefree", "disease-free", "progression free"), 0.0),
    **dict.fromkeys(("progressionfree", "progression-free", "no progression"), 0.0),
    **dict.fromkeys(("not progressed", "no recurrence", "kein ereignis", "pas d'evenement"), 0.0),
}
_RESPONSE = {
    **dict.fromkeys(("1", "1.0", "r", "yes", "y", "true", "responder", "response"), 1.0),
    **dict.fromkeys(("responded", "cr", "pr", "cr/pr", "complete response", "pcr", "dcb"), 1.0),
    **dict.fromkeys(("partial response", "complete remission", "partial remission"), 1.0),
    **dict.fromkeys(("complete responder", "partial responder", "ja", "j", "oui", "o"), 1.0),
    **dict.fromkeys(("ansprechen", "angesprochen", "repondeur", "reponse"), 1.0),
    **dict.fromkeys(("0", "0.0", "nr", "no", "n", "false", "non-responder"), 0.0),
    **dict.fromkeys(("nonresponder", "non responder", "non-response", "no response"), 0.0),
    **dict.fromkeys(("sd", "pd", "sd/pd", "stable disease", "progressive disease"), 0.0),
    **dict.fromkeys(("clinical progressive disease", "ncb", "ndb", "nein", "non"), 0.0),
    **dict.fromkeys(("kein ansprechen", "non repondeur", "non-repondeur", "not responded"), 0.0),
}
_AGE_WORDS = re.compile(r"\s*(?:years?|yrs?|y|jahre?|j|ans|an|a)\.?(?:\s*old)?$")


def plain(text: object) -> str:
    """Return a text in lower case, without accents and without blanks around it."""
    folded = unicodedata.normalize("NFKD", str(text).strip().lower().replace("\u00df", "ss"))
    kept = "".join(letter for letter in folded if not unicodedata.combining(letter))
    return re.sub(r"\s+", " ", kept).strip()


def known(text: object) -> str:
    """Return a cell without blanks around it; "" for every way of writing that nothing is known."""
    cell = str(text).strip()
    bracketed = cell.startswith("[") and cell.endswith("]")
    return "" if bracketed or plain(cell) in UNKNOWN else cell


def stage_number(text: str) -> float:
    """Return 1 to 4 for a stage such as `II`, `Stage IIIA`, `Stadium IIb` or `3`; NaN for unknown.

    Raises
    ------
    InputError
        The text is neither a stage I to IV nor one of the usual words for unknown.
    """
    cell = plain(known(text))
    if not cell or cell in _STAGE_UNKNOWN:
        return float("nan")
    match = _STAGE_TEXT.fullmatch(cell)
    if match is None:
        raise InputError(f"stage {text!r} is not I, II, III or IV (with A, B or C), nor empty")
    return STAGES.get(match[1].upper()) or float(match[1])


def sex_number(text: str) -> float:
    """Return 0 for female, 1 for male, NaN for unknown.

    Raises
    ------
    InputError
        The text is neither a sex nor one of the usual words for unknown.
    """
    cell = plain(known(text))
    if not cell or cell == "x":
        return float("nan")
    if cell not in _SEX:
        raise InputError(f"sex {text!r} is neither female (f) nor male (m); or leave it empty")
    return _SEX[cell]


def age_number(text: str) -> float:
    """Return an age as a number; `>89` and `90+` count as 90, NaN is unknown.

    Raises
    ------
    InputError
        The text is not a number.
    """
    cell = plain(known(text))
    if not cell:
        return float("nan")
    if capped := re.fullmatch(r"(?:>|over|older than|uber|ueber|plus de)\s*(\d{2,3})", cell):
        return float(capped[1]) + 1
    if capped := re.fullmatch(r"(?:>\s*=|\u2265)\s*(\d{2,3})|(\d{2,3})\s*\+", cell):
        return float(capped[1] or capped[2])
    try:
        value = float(_AGE_WORDS.sub("", cell).replace(",", "."))
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise InputError(f"age {text!r} is not a number of years; or leave it empty")
    return value


def event_number(text: str) -> float:
    """Return 1 for an event (death, progression), 0 for none (alive, censored), NaN for unknown.

    cBioPortal's `1:DECEASED` is read too, if its number and its word agree.

    Raises
    ------
    InputError
        The text says neither.
    """
    cell = plain(known(text))
    parts = [part.strip() for part in cell.split(":")]
    values = {_EVENT.get(part) for part in parts if known(part)}
    if not values:
        return float("nan")
    if len(values) > 1 or None in values:
        hint = "; 1 and 2 as R's survival counts them are 0 and 1 here" if cell == "2" else ""
        raise InputError(f"event {text!r} is not 0 (censored) or 1 (event){hint}")
    return float(next(iter(values)) or 0.0)


def response_number(text: str) -> float:
    """Return 1 for a response (R, CR, PR, yes), 0 for none (NR, SD, PD, no), NaN for unknown.

    Raises
    ------
    InputError
        The text says neither.
    """
    cell = plain(known(text))
    if not cell:
        return float("nan")
    # `complete response (CR)`
    if cell not in _RESPONSE and (short := re.fullmatch(r"(.*\S)\s*\((\w+)\)", cell)):
        values = {_RESPONSE[part] for part in short.groups() if part in _RESPONSE}
        if len(values) == 1:
            return values.pop()
    if cell not in _RESPONSE:
        raise InputError(f"response {text!r} is not 0 (no response) or 1 (response), NR or R")
    return _RESPONSE[cell]


def read_words(cells: pd.Series, convert: Callable[[str], float]) -> tuple[pd.Series, pd.Series]:
    """Return cells as numbers, and which could not be read; each word is looked up once."""
    values: dict[str, float] = {}
    odd: set[str] = set()
    for cell in cells.unique():
        try:
            values[cell] = convert(cell)
        except InputError:
            values[cell] = float("nan")
            odd.add(cell)
    return cells.map(values).astype(float), cells.isin(odd)


def clinical_numbers(patients: pd.DataFrame) -> pd.DataFrame:
    """Return outcome and covariates as numbers, by patient; absent columns stay absent."""
    table = pd.DataFrame(index=pd.Index(patients["patient"].astype(str), name=None))
    problems: list[str] = []
    for column in ("time", "event", "age", "response"):
        if column in patients:
            table[column] = pd.to_numeric(patients[column]).to_numpy(float)
    for column, convert in (("sex", sex_number), ("stage", stage_number)):
        if column not in patients:
            continue
        values = []
        for patient, text in zip(table.index, patients[column], strict=True):
            try:
                values.append(convert("" if text is None or text != text else text))
            except InputError as error:
                problems.append(f"  patient {patient}: {error}")
                values.append(np.nan)
        table[column] = values
    if problems:
        raise InputError("the patient sheet has mistakes:\n" + "\n".join(problems))
    return table


def has_outcome(clinical: pd.DataFrame) -> np.ndarray:
    """Return who has a survival time with its event, or a response, from `clinical_numbers`."""
    known = clinical.notna()
    result = np.zeros(len(clinical), bool)
    if {"time", "event"} <= set(clinical):
        result |= (known["time"] & known["event"]).to_numpy()
    if "response" in clinical:
        result |= known["response"].to_numpy()
    return result
