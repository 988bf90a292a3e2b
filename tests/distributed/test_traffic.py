"""What ranks send each other in an update of a model of e5-small's sizes, and that sending less changes no sum."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.distributed.ranks import launch
from xsalt import distributed, parallel
from xsalt.batch import Batch, Layout
from xsalt.criterions.cross_entropy import CrossEntropy, CrossEntropyConfig
from xsalt.data.batching import plan_batches, split_update
from xsalt.models.bert import Bert
from xsalt.nn.encoder import EncoderConfig
from xsalt.training.step import TrainStep

V, D = 250_037, 384
E5_SMALL = EncoderConfig(V, D, 12, 12, 1536, 512, 2, 1e-12, 0, 0, dropout=0.0, attention_dropout=0.0)


def xnli_lengths(n: int) -> np.ndarray:
    """Lengths of pairs like those of XNLI's English dev set in e5-small's pieces: 14 to 82, 42 on average."""
    return np.clip(np.random.default_rng(0).lognormal(3.683, 0.33, n).round(), 14, 82).astype(np.int64)


def xnli_batch(lengths_B: np.ndarray, seed: int) -> Batch:
    """Random ids, of Zipf's law: there are about as many different ones (530) in 32 pairs as in XNLI's."""
    T = int(lengths_B.sum())
    ids_T = torch.from_numpy(np.random.default_rng(seed).zipf(1.15, T) % 6000)
    zeros_T = torch.zeros(T, dtype=torch.int64)
    return Batch(
        ids_T=ids_T,
        type_T=zeros_T,
        layout=Layout(lengths_B),
        uid_B=torch.arange(len(lengths_B)),
        view_B=torch.zeros(len(lengths_B), dtype=torch.int64),
        label_B=torch.arange(len(lengths_B)) % 3,
        language_T=zeros_T,
        languages=("en",),
        special_T=zeros_T.bool(),
        corpus_T=zeros_T - 1,
        source_ids_T=ids_T,
    )


def one_update(folder: Path) -> None:
    """The update on this rank with gradients as they are and in bf16, and the sum of some rows."""
    rank, ranks = distributed.rank(), distributed.world_size()
    lengths = xnli_lengths(64)
    share = split_update(plan_batches(lengths, size=32)[:1], lengths, ranks)[rank][0]
    torch.manual_seed(0)
    model = Bert(E5_SMALL, torch.zeros(1, D).expand(V, D), num_labels=3)
    torch.nn.init.normal_(model.embeddings.position, std=0.02)
    torch.nn.init.zeros_(model.embeddings.token_type)
    model.embeddings.word.prepare(np.arange(6000))
    model.embeddings.word.sparse_gradient = True
    word = model.embeddings.word.weight
    sizes = {name: p.numel() * 4 for name, p in model.named_parameters() if p is not word}
    found = {"dense": np.array(sum(sizes.values()) + V * D * 4)}
    for name, dtype in (("exact", None), ("bf16", torch.bfloat16)):
        step = TrainStep(model, {"cross_entropy": CrossEntropy(CrossEntropyConfig(), None)}, "fp32")  # type: ignore[arg-type]
        joined_step = parallel.in_parallel(step, word, dtype)
        distributed.traffic.clear()
        batch = xnli_batch(lengths[share], rank)
        counts = dict(zip(["cross_entropy"], distributed.sum_over_ranks([float(len(share))]), strict=True))
        joined_step(batch, counts)[0].backward()
        joined_step.finish()
        found |= {f"{name}/{kind}": np.array(sent) for kind, sent in distributed.traffic.items()}
        found |= {f"{name}/gradient/{key}": p.grad.to_dense().numpy() for key, p in list(model.named_parameters())[:6]}
        found[f"{name}/touched"] = np.array([len(batch.ids_T.unique()), len(word.grad.indices()[0])])
        model.zero_grad(set_to_none=True)
    np.savez(folder / f"{rank}.npz", **found, **sums_of_rows(rank))


def sums_of_rows(rank: int) -> dict[str, np.ndarray]:
    """``sum_rows`` beside the all-reduce of the whole table: sparse, dense, where one rank or none has a gradient."""
    torch.manual_seed(rank)
    table = torch.zeros(40, 3)
    dense = torch.randn(40, 3) * (torch.rand(40, 1) < 0.2)
    twice = torch.tensor([[3, 17, 3, 8 + rank]])
    sparse = torch.sparse_coo_tensor(twice, torch.randn(4, 3), (40, 3), check_invariants=True)
    found = {}
    for name, own in {
        "dense": dense,
        "sparse": sparse,
        "one": sparse if rank else None,
        "mixed": dense if rank else sparse,
    }.items():
        expected = torch.zeros(40, 3) if own is None else own.to_dense().clone()
        torch.distributed.all_reduce(expected)
        summed = parallel.sum_rows(own, table)
        found |= {f"rows/{name}": summed.to_dense().numpy(), f"rows/{name}/expected": expected.numpy()}
    found["rows/none"] = np.array(parallel.sum_rows(None, table) is None)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, np.ndarray]]:
    folder = tmp_path_factory.mktemp("traffic")
    launch(2, one_update, folder)
    return [dict(np.load(folder / f"{rank}.npz")) for rank in range(2)]


def test_the_word_table_takes_two_hundredths_and_a_step_a_fifth_of_a_dense_all_reduce(
    ranks: list[dict[str, np.ndarray]],
) -> None:
    for own in ranks:
        assert own["dense"] == pytest.approx(4 * 118e6, rel=0.01)
        assert own["exact/touched"].max() > 500
        assert own["exact/rows"] <= 0.02 * V * D * 4
        assert own["exact/rows"] + own["exact/gradients"] + own["exact/counts"] <= 0.2 * own["dense"]


def test_bf16_halves_the_traffic_and_changes_gradients_by_its_rounding_alone(
    ranks: list[dict[str, np.ndarray]],
) -> None:
    for own in ranks:
        assert own["bf16/gradients"] == pytest.approx(own["exact/gradients"] / 2, rel=1e-3)
        assert own["bf16/rows"] < 0.6 * own["exact/rows"]
        for key in own:
            if key.startswith("exact/gradient/"):
                exact, rounded = own[key], own[key.replace("exact", "bf16")]
                assert 0 < np.linalg.norm(exact - rounded) <= 2**-7 * np.linalg.norm(exact), key


def test_rows_are_summed_as_the_whole_table_would_be(ranks: list[dict[str, np.ndarray]]) -> None:
    for own in ranks:
        assert own["rows/none"]
        for name in ("dense", "sparse", "one", "mixed"):
            assert np.any(own[f"rows/{name}"])
            np.testing.assert_allclose(own[f"rows/{name}"], own[f"rows/{name}/expected"], rtol=1e-6, atol=1e-7)
            assert np.array_equal(own[f"rows/{name}"], ranks[0][f"rows/{name}"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("world", [2, 3, 4, 8])
def test_ranks_get_equal_tokens_within_a_twentieth_on_xnlis_lengths(world: int, accumulate: int) -> None:
    lengths = xnli_lengths(3200)
    batches = plan_batches(lengths, size=32, seed=3)
    imbalance = []
    for start in range(0, len(batches), accumulate):
        shares = split_update(batches[start : start + accumulate], lengths, world)
        tokens = [sum(int(lengths[part].sum()) for part in share) for share in shares]
        imbalance.append(max(tokens) / np.mean(tokens))
        for number, batch in enumerate(batches[start : start + accumulate]):
            parts = [share[number] for share in shares]
            assert np.array_equal(np.sort(np.concatenate(parts)), np.sort(batch))
    assert np.mean(imbalance) <= 1.05 and np.quantile(imbalance, 0.95) <= 1.05
    if accumulate == 1:
        assert max(imbalance) <= 1.05
