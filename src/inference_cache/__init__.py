"""Executable specs and adapters for one Valkey that carries ML inference caches (ADR-0023)."""

__version__ = "0.1.0"
