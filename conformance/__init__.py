"""Executable specs: one file for each group of clauses."""
