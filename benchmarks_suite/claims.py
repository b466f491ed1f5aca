"""Attack one claim of docs/methods by simulation, and print how often it fails.

    python benchmarks_suite/claims.py --row 2 [options of that row]

Rows: 1 copy number against expression programmes, 2 predictable genes against unrelated maps,
3 near copies against the leak audit, 4 the out-of-distribution gate, 5 the interval of the C-index
gain, 6 the noise ceiling, 7 nulls of the response scores, 8 subtypes against purity. Each row is a
module in `benchmarks_suite/claims/`; `--row N --help` lists its options.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

ROWS = {
    "1": "copy_number",
    "2": "predictable_genes",
    "3": "near_copies",
    "4": "out_of_distribution",
    "5": "survival_gain",
    "6": "noise_ceiling",
    "7": "response_null",
    "8": "purity_subtypes",
}


def main() -> None:
    """Run the module of the row that the command line names, with the other arguments."""
    arguments = sys.argv[1:]
    if len(arguments) < 2 or arguments[0] != "--row" or arguments[1] not in ROWS:
        sys.exit(__doc__)
    script = Path(__file__).parent / "claims" / f"{ROWS[arguments[1]]}.py"
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.argv = [str(script), *arguments[2:]]
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
