"""What a run of mutmut in the working directory found, held against the survivors that a document explains.

    python tests/mutation_survivors.py docs/mutation.md

Prints a row for each module and every survivor that is in no table of the document. Ends with 1 when there is
one, or when a mutant was not tried.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

_KILLED = ("killed", "timeout")
_ROW = re.compile(r"\| `(?P<function>[^`]+)` \| `(?P<line>[^`]+)` \| .+ \|")


def main(document: Path) -> int:
    explained = {
        (row["function"], row["line"].replace(r"\|", "|"))
        for row in map(_ROW.fullmatch, document.read_text().splitlines())
        if row is not None
    }
    found: set[tuple[str, str]] = set()
    open_ends = 0
    print("| module | mutants | killed | timeout | explained | survived | not tried |")
    print("|---|---|---|---|---|---|---|")
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        counts: Counter[str] = Counter()
        for mutant, code in data.exit_code_by_key.items():
            status = status_by_exit_code[code]
            if status not in (*_KILLED, "not checked"):
                change = _changed(mutant, path)
                found.add(change)
                status = "explained" if change in explained else "survived"
                if status == "survived":
                    print(f"not explained: {change[0]}: {change[1]}", file=sys.stderr)
            counts[status] += 1
        if counts:
            open_ends += counts["survived"] + counts["not checked"]
            numbers = (counts[name] for name in (*_KILLED, "explained", "survived", "not checked"))
            module = path.relative_to("src/inference_cache").with_suffix("")
            print(f"| `{module}` | {counts.total()} | {' | '.join(map(str, numbers))} |")
    for function, line in sorted(explained - found):
        print(f"explained, but no survivor: {function}: {line}", file=sys.stderr)
    return 1 if open_ends else 0


def _changed(mutant: str, path: Path) -> tuple[str, str]:
    """The function of a mutant, and its lines that are not in the original, or what it lacks of them."""
    function = re.sub(r"\.x_?(?:ǁ\w+ǁ)?(\w+)__mutmut_\d+$", r".\1", mutant)
    lines = get_diff_for_mutant(mutant, path=path).splitlines()[2:]
    added = " ".join(line[1:].strip() for line in lines if line.startswith("+"))
    removed = " ".join(line[1:].strip() for line in lines if line.startswith("-"))
    return function.removeprefix("inference_cache."), added or f"without {removed}"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
