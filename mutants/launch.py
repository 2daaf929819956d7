"""``python -m mutants.launch HOOK SERVER LIVENESS FOLDER ARGUMENTS...``: run a life-cycle hook, then
become the server.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mutants.lifecycle import HOOKS
from mutants.liveness import note

__all__ = ["main"]


def main() -> None:
    hook, server, liveness, folder, *arguments = sys.argv[1:]
    acted = HOOKS[hook](arguments, Path(folder), server)
    note(Path(liveness), hook, acted)
    os.execv(server, [server, *arguments])


if __name__ == "__main__":
    main()
