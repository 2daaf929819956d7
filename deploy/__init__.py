"""Kubernetes manifests of the instance, rendered from the contract: see docs/deploy.md.

:func:`deploy.generate.files` makes them; ``deploy/generated`` holds what the shipped contract gives.
"""
