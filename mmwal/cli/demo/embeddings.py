"""The package's own copy of real embeddings; `mmwal/data/README.md` says what they are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Embeddings:
    """The documented objects of a standard library, and questions about them with their exact answers.

    ``vectors`` is (n, d) float32, ``query_vectors`` (q, d) float32, ``top10`` (q, 10): row numbers of the exact ten
    nearest by inner product, best first.
    """

    ids: list[str]
    summaries: list[str]
    vectors: npt.NDArray[np.float32]
    queries: list[str]
    query_vectors: npt.NDArray[np.float32]
    top10: npt.NDArray[np.int32]

    @property
    def dimension(self) -> int:
        """Values per vector."""
        return int(self.vectors.shape[1])


def load_embeddings() -> Embeddings:
    """Reads the embeddings from the package, installed or not."""
    path = files("mmwal").joinpath("data", "stdlib_minilm.npz")
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Embeddings(
            ids=[id.decode() for id in arrays["ids"].tolist()],
            # A summary was cut at so many bytes, perhaps within a character.
            summaries=[text.decode(errors="replace") for text in arrays["summary"].tolist()],
            vectors=arrays["vectors"].astype(np.float32),
            queries=[text.decode() for text in arrays["queries"].tolist()],
            query_vectors=arrays["query_vectors"],
            top10=arrays["top10"],
        )
