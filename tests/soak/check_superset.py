"""Whether `prepare_data check` names every fault that a build refuses or makes something else of.

python -m tests.soak.check_superset [FOLDERS] [SEED]
"""

import sys
import tempfile
from pathlib import Path

from tests.data.folder_faults import FAULTS, try_fault


def main(folders: int = 200, seed: int = 0) -> int:
    """Tries folders with one fault each, the kinds in turn; returns how many are wrong."""
    wrong = 0
    for number in range(folders):
        with tempfile.TemporaryDirectory() as folder:
            verdict = try_fault(FAULTS[number % len(FAULTS)], seed + number, Path(folder))
        wrong += not verdict.is_right
        if verdict.refusal is not None or verdict.problems:
            outcome = f"refused: {(verdict.problems or [verdict.refusal])[0]}"
        else:
            outcome = f"{'as meant' if verdict.is_as_meant else 'something else'}, warned: "
            outcome += "; ".join(verdict.warnings) or "no"
        judgement = "right" if verdict.is_right else "WRONG"
        print(f"{judgement}  {seed + number} {verdict.fault}: {outcome}"[:300])
    print(f"{folders} folders, {len(FAULTS)} kinds of faults: {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])) > 0)
