"""The subcommands of ``inference-cache``, one module each.

A module has ``add(commands)``: it adds its parser to argparse's subparsers and sets ``run``, a function of
the parsed options that returns the exit code. What only one command needs is imported inside its ``run``,
so that ``--help`` works, and fast, without any extra.
"""
