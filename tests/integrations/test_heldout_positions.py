"""Rows of positions: chosen over many prompts, and joined whatever their padding."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from kullback.integrations.heldout_positions import HeldOutCompletions, prompt_fingerprints
from kullback.integrations.transformers import completion_kl, head_of, last_hidden


def positions(prompts: list[list[int]], completions: list[list[int]]) -> HeldOutCompletions:
    """Rows of token numbers, padded as a trainer pads them; the states hold each row's and place's number."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = torch.tensor(
        [[0] * (left - len(a)) + a + b + [0] * (right - len(b)) for a, b in zip(prompts, completions, strict=True)]
    )
    mask = torch.tensor([[1] * len(b) + [0] * (right - len(b)) for b in completions])
    attention = torch.cat([torch.tensor([[0] * (left - len(a)) + [1] * len(a) for a in prompts]), mask], dim=1)
    states = torch.arange(len(ids) * (right + 1) * 2.0).reshape(len(ids), right + 1, 2)
    weight, place = torch.ones(len(ids), dtype=torch.float64), torch.arange(len(ids))
    return HeldOutCompletions(ids, attention, mask, states, mask * 0.5, weight, place)


def test_fingerprints_know_equal_prompts_under_any_padding() -> None:
    ids = torch.tensor([[0, 0, 5, 6], [0, 0, 5, 6], [0, 5, 6, 5], [0, 0, 6, 5]])
    mask = torch.tensor([[0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1], [0, 0, 1, 1]])
    prints = prompt_fingerprints(ids, mask).tolist()
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3
    assert prompt_fingerprints(torch.tensor([[5, 6]]), torch.tensor([[1, 1]])).tolist() == prints[:1]


def test_rows_alike_are_drawn_from_many_prompts() -> None:
    rows = positions([[7], [8], [7], [8], [9], [9]], [[1], [2], [3], [4], [5], [6]])
    drawn = rows.sample_by_kl(3)
    assert {tuple(prompt) for prompt in drawn.ids[:, :1].tolist()} == {(7,), (8,), (9,)}
    assert drawn.weight.tolist() == [1.0, 1.0, 1.0]
    assert sorted(rows.sample_by_kl(6).ids[:, -1].tolist()) == [1, 2, 3, 4, 5, 6]
    nothing = replace(rows, kl=torch.zeros_like(rows.kl)).sample_by_kl(3)  # a policy that is its reference
    assert nothing.weight.tolist() == [1.0, 1.0, 1.0]


def test_rows_of_much_kl_are_drawn_and_weighted_down() -> None:
    rows = positions([[n] for n in range(8)], [[n] for n in range(8)])
    rows = replace(rows, kl=torch.tensor([[0.0], [0.0], [0.0], [8.0], [0.0], [0.0], [0.0], [0.0]]))
    drawn = rows.sample_by_kl(4)  # sizes are 1, and 9 of 16 are the fourth's
    assert drawn.ids[:, -1].tolist().count(3) in (2, 3)
    assert drawn.weight.tolist() == [2.0 if kl == 0 else 2 / 9 for kl in drawn.kl[:, 0].tolist()]


def test_drawn_rows_tell_the_mean_kl_and_better_than_as_many_by_lot() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = positions([[n // 8] for n in range(128)], [[n % 8] for n in range(128)])
    errors = {"drawn": [], "by lot": []}
    for _ in range(300):
        kl = torch.randn(128, 1, generator=generator, dtype=torch.float64).mul(1.5).exp()
        drawn = replace(rows, kl=kl).sample_by_kl(16)
        errors["drawn"].append(float((drawn.weight * drawn.kl[:, 0]).mean() / kl.mean() - 1))
        some = torch.randperm(128, generator=generator)[:16]
        errors["by lot"].append(float(kl[some].mean() / kl.mean() - 1))
    spread = {name: torch.tensor(values).square().mean().sqrt() for name, values in errors.items()}
    assert abs(sum(errors["drawn"]) / 300) < 4 * spread["drawn"] / 300**0.5
    assert spread["drawn"] < 0.4 * spread["by lot"]


def test_the_baseline_of_a_row_is_the_mean_of_the_other_rows_of_its_prompt() -> None:
    rows = positions([[7], [7], [7], [7, 8]], [[1, 2, 3], [2], [4, 5, 6], [9, 9]])
    values = torch.tensor([7.0, 8.0, 112.0, 8.0])
    expected = [7.0 - (8 + 112) / 2, 8.0 - (7 + 112) / 2, 112.0 - (7 + 8) / 2, 8.0 - (7 + 8 + 112) / 3]
    torch.testing.assert_close(rows.centred(values, otherwise=5.0), torch.tensor(expected))
    assert rows.take(slice(0, 1)).centred(values[:1], otherwise=5.0).tolist() == [2.0]
    # The rows of a prompt may be on several processes.
    of_processes = iter([rows._fingerprints(), rows.mask.any(dim=1), values])
    second = rows.take(slice(2, None)).centred(values[2:], otherwise=5.0, first=2, gather=lambda _: next(of_processes))
    torch.testing.assert_close(second, torch.tensor(expected[2:]))
    masked = replace(rows, mask=rows.mask * torch.tensor([[1], [0], [1], [0]]))  # as truncated completions are
    expected = [7.0 - 112, 8.0 - (7 + 112) / 2, 112.0 - 7, 8.0 - (7 + 112) / 2]
    torch.testing.assert_close(masked.centred(values, otherwise=5.0), torch.tensor(expected))


def test_joined_rows_see_the_same_tokens_and_keep_their_kl() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=2, max_position_embeddings=32, initializer_range=0.5)
    policy, reference = LlamaForCausalLM(config).eval(), LlamaForCausalLM(config).eval()

    def seen(rows: HeldOutCompletions) -> tuple[HeldOutCompletions, torch.Tensor]:
        ref = last_hidden(reference, rows.ids, rows.attention)[:, -rows.mask.shape[1] - 1 :]
        hidden = last_hidden(policy, rows.ids, rows.attention)
        kl = completion_kl(head_of(policy), hidden, head_of(reference), ref, rows.mask, temperature=1.0)
        return replace(rows, ref_hidden=ref, kl=kl), kl

    long, long_kl = seen(positions([[3, 4, 5, 6], [3]], [[7, 8, 9], [7]]))
    short, short_kl = seen(positions([[3, 9]], [[4, 5, 6, 7, 8]]))
    joined = long.concatenate(short)
    assert joined.ids.shape == (3, 4 + 5)
    assert joined.ref_hidden.shape == (3, 6, 16)
    hidden = last_hidden(policy, joined.ids, joined.attention)
    again = completion_kl(head_of(policy), hidden, head_of(reference), joined.ref_hidden, joined.mask, temperature=1.0)
    torch.testing.assert_close(again, joined.kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again[:2, :3], long_kl, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(again[2:], short_kl, rtol=1e-4, atol=1e-6)
    assert joined.mask.sum().item() == 9


def test_take_keeps_the_rows_together() -> None:
    rows = positions([[3], [4]], [[1, 2], [5]]).take(slice(1, None))
    assert rows.ids.tolist() == [[4, 5, 0]]
    assert rows.mask.tolist() == [[1, 0]]
    assert len(rows) == 1


def test_the_sample_does_not_depend_on_the_division_into_processes() -> None:
    prompts = [[3 + i % 4] * (1 + i % 3) for i in range(12)]
    rows = positions(prompts, [[20 + i] * (1 + i % 2) for i in range(12)])
    rows = replace(rows, kl=rows.mask * torch.linspace(0.1, 3.0, 12)[:, None])
    whole = rows.sample_by_kl(5)
    shuffled = rows.take(torch.tensor([3, 1, 2, 0, 7, 5, 6, 4, 9, 8, 11, 10]))
    parts = [shuffled.take(slice(start, start + 4)) for start in (0, 4, 8)]
    sampled = []
    for part, first in zip(parts, (0, 4, 8), strict=True):

        def gather(values: torch.Tensor, part: HeldOutCompletions = part) -> torch.Tensor:
            """The values that all processes have, found by the computation that gives the values of this process."""
            for compute in (
                lambda given: given.kl.detach().double().sum(dim=1),
                lambda given: given.mask.sum(dim=1),
                lambda given: given._completion_fingerprints(),
                lambda given: given._fingerprints(),
            ):
                if torch.equal(compute(part).double(), values.double()):
                    return torch.cat([compute(other) for other in parts])
            raise AssertionError

        sampled.append(part.sample_by_kl(5, first=first, gather=gather))
    counted = [(int(row), float(w)) for s in sampled for row, w in zip(s.ids[:, -1], s.weight, strict=True) if w > 0]
    expected = [(int(row), float(w)) for row, w in zip(whole.ids[:, -1], whole.weight, strict=True)]
    assert sorted(w for _, w in counted) == pytest.approx(sorted(w for _, w in expected))
    assert sorted(int(p) for s in sampled for p, w in zip(s.place, s.weight, strict=True) if w > 0) == [0, 1, 2, 3, 4]


def test_renewal_keeps_the_newest_rows_and_at_least_one_row() -> None:
    rows = positions([[3], [4], [5], [6]], [[1], [2], [7], [8]])
    added = replace(rows.take(slice(1)), ids=rows.ids[:1] + 20, place=torch.tensor([0]))
    renewed = rows.renewed(added, 1, 4)
    assert renewed.ids[:, 0].tolist() == [23, 3, 4, 5]
    assert renewed.place.tolist() == [0, 1, 2, 3]
    # Another process has the newly sampled rows, which replace all of these.
    nothing = replace(rows.take(slice(1)), weight=torch.zeros(1, dtype=torch.float64))
    kept = rows.renewed(nothing, 4, 4)
    assert kept.weight.tolist() == [0.0]


def test_rows_without_a_token_that_counts_are_not_sampled() -> None:
    rows = positions([[3], [4], [5]], [[1], [2], [7]])
    rows = replace(rows, mask=rows.mask * torch.tensor([[1], [0], [1]]), kl=torch.tensor([[0.5], [0.0], [0.5]]))
    drawn = rows.sample_by_kl(4)
    assert drawn.ids[:, 0].tolist() == [3, 3, 5, 5]
    assert drawn.weight.tolist() == [1.0] * 4


def test_columns_that_are_padding_in_all_selected_rows_are_removed() -> None:
    rows = positions([[3], [4, 5], [6]], [[1, 2, 3, 4], [7], [8, 9]])
    rows = replace(rows, kl=rows.mask * torch.tensor([[0.0], [1.0], [1.0]]))
    added = rows.sample_by_kl(2)  # the long completion has little KL
    assert added.ids.tolist() == [[0, 6, 8, 9], [4, 5, 7, 0]]
    assert added.attention.tolist() == [[0, 1, 1, 1], [1, 1, 1, 0]]
    assert added.ref_hidden.shape == (2, 3, 2)
    assert added.kl.tolist() == [[1.0, 1.0], [1.0, 0.0]]
    renewed = rows.renewed(added, 2, 3)
    assert renewed.ids.shape == (3, 6)
    assert renewed.renewed(replace(added, place=torch.tensor([0, 1])), 2, 2).ids.shape == (2, 4)


def test_selected_rows_keep_a_column_where_no_completion_has_a_token() -> None:
    rows = positions([[3], [4]], [[1], [2]])
    rows = replace(rows, attention=rows.attention * torch.tensor([1, 0]), mask=rows.mask * 0, kl=rows.kl * 0)
    assert rows.renewed(rows, 2, 2).mask.shape == (2, 1)
