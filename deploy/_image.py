"""The Dockerfile of the image that gate and exporter run."""

from __future__ import annotations

__all__ = ["dockerfile"]


def dockerfile() -> str:
    """Text of the Dockerfile: no root, nothing to write but what is mounted, nothing built at run time."""
    return """\
# Build from the repository root, after `python -m build --wheel`:
#   docker build -f deploy/generated/image/Dockerfile -t inference-cache:VERSION .
# Pin the base by digest where your registry gives you one: --build-arg BASE=python:3.12-slim@sha256:...
ARG BASE=python:3.12-slim

FROM ${BASE} AS build
COPY dist/*.whl /wheels/
RUN python -m venv /opt/inference-cache \\
 && wheel="$(ls /wheels/inference_cache-*.whl)" \\
 && /opt/inference-cache/bin/pip install --no-cache-dir "${wheel}[gate]"

FROM ${BASE}
COPY --from=build /opt/inference-cache /opt/inference-cache
# The root file system is read-only in the cluster: no byte code, caches or home there.
ENV PATH=/opt/inference-cache/bin:$PATH \\
    PYTHONDONTWRITEBYTECODE=1 \\
    PYTHONUNBUFFERED=1 \\
    HOME=/tmp \\
    TMPDIR=/tmp
WORKDIR /reports
USER 65532:65532
ENTRYPOINT ["inference-cache"]
CMD ["--help"]
"""
