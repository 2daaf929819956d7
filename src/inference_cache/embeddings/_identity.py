"""What an embedding is the embedding of, as a digest that differs whenever anything of it differs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any, Final

from inference_cache.errors import InvalidText, UsageError

__all__ = ["DIGEST_BYTES", "Identity"]

DIGEST_BYTES: Final = 32

_DOMAIN: Final = b"inference-cache embedding key 1"
"""Hashed first, so that no digest of another scheme or of a later version of this one can be equal."""


def _field(name: bytes, content: bytes) -> bytes:
    """Name and content, each after its length, so that fields put together can be read in one way only."""
    return b"".join((len(name).to_bytes(1, "big"), name, len(content).to_bytes(8, "big"), content))


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Everything that decides an embedding but the text.

    ``digest`` is injective, up to collisions of SHA-256, in (text, model, revision, dimensions, dtype, task).

    Raises UsageError for a field that is no text, is not valid Unicode, or for an empty model.
    """

    model: str
    revision: str
    dimensions: int
    dtype: str
    task: str
    _begun: Any = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        begun = hashlib.sha256(_DOMAIN)
        for name in ("model", "revision", "dtype", "task"):
            begun.update(_field(name.encode(), self._encoded(name)))
        begun.update(_field(b"dimensions", b"%d" % self.dimensions))
        object.__setattr__(self, "_begun", begun)
        if not self.model:
            raise UsageError("model names what computes the vectors, as 'BAAI/bge-m3' does; it is empty")

    def _encoded(self, name: str) -> bytes:
        value = getattr(self, name)
        if not isinstance(value, str):
            raise UsageError(f"{name} is a str, not {type(value).__name__}")
        try:
            return value.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{name} is not valid Unicode ({error.reason}): {value!r:.80}") from error

    def digest(self, text: str, *, max_text_bytes: int) -> bytes:
        """The 32 bytes that stand for ``text`` under this model.

        Raises InvalidText for what is no ``str``, is empty, is not valid Unicode, or is longer in UTF-8 than
        ``max_text_bytes``. Its message does not repeat the text, which may be private.
        """
        if not isinstance(text, str):
            raise InvalidText(f"a text is a str, not {type(text).__name__}")
        if not text:
            raise InvalidText("a text is empty: leave it out, there is nothing to embed")
        try:
            encoded = text.encode()
        except UnicodeEncodeError as error:
            raise InvalidText(
                f"a text of {len(text)} characters is not valid Unicode at character {error.start}: "
                f"{error.reason}"
            ) from None
        if len(encoded) > max_text_bytes:
            raise InvalidText(
                f"a text has {len(encoded)} bytes, more than max_text_bytes={max_text_bytes}: split it into "
                "passages, or raise the limit if the model reads as much"
            )
        hasher = self._begun.copy()
        hasher.update(_field(b"text", encoded))
        digest: bytes = hasher.digest()
        return digest
