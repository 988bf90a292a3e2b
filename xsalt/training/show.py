"""An augmented batch as text, for TensorBoard and the terminal."""

from __future__ import annotations

from xsalt.batch import Batch
from xsalt.text.tokenizer import Tokenizer


def show_batch(batch: Batch, tokenizer: Tokenizer, most: int = 8) -> str:
    """Markdown: the first sequences, each switched token as ``source→**switched** (language)``."""
    other_T = batch.mix.other_ids_T if batch.mix is not None else batch.ids_T
    rows = []
    for b in range(min(most, batch.layout.size)):
        start, end = batch.layout.offsets[b], batch.layout.offsets[b + 1]
        words = []
        for t in range(int(start), int(end)):
            source, now = int(batch.source_ids_T[t]), int(other_T[t])
            piece = tokenizer.piece(source).replace("▁", " ")
            if source != now:
                language = batch.languages[int(batch.language_T[t])]
                piece += f"→**{tokenizer.piece(now).strip('▁')}** ({language})"
            words.append(piece)
        rows.append(f"- view {int(batch.view_B[b])}: {''.join(words).strip()}")
    return "\n".join(rows)
