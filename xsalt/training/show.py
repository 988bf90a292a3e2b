"""An augmented batch as text, for TensorBoard and the terminal."""

from __future__ import annotations

from xsalt.batch import Batch
from xsalt.text.tokenizer import Tokenizer


def show_batch(batch: Batch, tokenizer: Tokenizer, most: int = 8) -> str:
    """Markdown: the first sequences, each switched token as ``source→**switched** (language)``.

    Where two switched views are mixed it is ``source→*one*/**other** (language of the other)``.
    """
    other_T = batch.mix.other_ids_T if batch.mix is not None else batch.ids_T
    rows = []
    for b in range(min(most, batch.layout.size)):
        start, end = batch.layout.offsets[b], batch.layout.offsets[b + 1]
        words = []
        for t in range(int(start), int(end)):
            source, one, other = int(batch.source_ids_T[t]), int(batch.ids_T[t]), int(other_T[t])
            piece = tokenizer.piece(source).replace("▁", " ")
            if source != one or source != other:
                language = batch.languages[int(batch.language_T[t])]
                beside = "" if one in (source, other) else f"*{tokenizer.piece(one).strip('▁')}*/"
                piece += f"→{beside}**{tokenizer.piece(other).strip('▁')}** ({language})"
            words.append(piece)
        rows.append(f"- view {int(batch.view_B[b])}: {''.join(words).strip()}")
    return "\n".join(rows)
