"""Alerts made from the contract: each with its words, its runbook and the cases that prove it.

``alerts.generate.files(contract)`` gives every generated file; a module for each group holds the alerts.
"""
