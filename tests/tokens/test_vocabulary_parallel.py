"""linear_token_kl with heads in parts of the vocabulary on several processes equals one process."""

import multiprocessing
import os
import tempfile

import pytest
import torch
import torch.multiprocessing

from kullback.tokens import linear_token_kl

SIZES = {2: [9, 8], 4: [3, 0, 9, 5]}
NAMES = ("kl", "reverse_kl", "js", "entropy_p", "entropy_q", "log_prob_p", "log_prob_q", "total_variation")


def inputs():
    generator = torch.Generator().manual_seed(3)

    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    hidden_p, weight_p, bias_p = make(5, 4), make(17, 4), make(17)
    hidden_q, weight_q, bias_q = make(5, 6), make(17, 6), make(17)
    bias_p[3:5], bias_q[4:6] = -torch.inf, -torch.inf
    bias_q[3] = -torch.inf
    bias_p[5] = -torch.inf
    bias_q[9:12] = bias_p[9:12] = -torch.inf  # all tokens of a part
    return hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q


TARGETS = torch.tensor([0, 2, 8, 16, 13])


def outcome(group, rows, weights=None):
    hidden_p, weight_p, bias_p, hidden_q, weight_q, bias_q = inputs()
    hidden_p, hidden_q = hidden_p.requires_grad_(), hidden_q.requires_grad_()
    weight_p, weight_q, bias_p, bias_q = (
        t[rows].clone().requires_grad_() for t in (weight_p, weight_q, bias_p, bias_q)
    )
    stats = linear_token_kl(
        hidden_p, weight_p, hidden_q, weight_q, targets=TARGETS, token_weights=weights, bias_p=bias_p, bias_q=bias_q,
        softcap_p=5.0, chunk=2, group=group,
    )  # fmt: skip
    loss = sum((k + 1) * getattr(stats, name).nan_to_num(posinf=0.0).sum() for k, name in enumerate(NAMES[:7]))
    if weights is not None:
        loss = 2 * sum((getattr(stats, name) * known).sum() for name, known in weights.items())
    loss.backward()
    values = [getattr(stats, name).detach() for name in (*NAMES, "top1_prob_p", "top1_prob_q")] + [stats.top1_agreement]
    return values, [hidden_p.grad, hidden_q.grad], [weight_p.grad, weight_q.grad, bias_p.grad, bias_q.grad]


WEIGHTS = {"js": torch.linspace(0.5, 1.5, 5, dtype=torch.float64), "log_prob_p": -torch.ones(5, dtype=torch.float64)}


def compare(rank, world, path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=world)
    start = sum(SIZES[world][:rank])
    rows = slice(start, start + SIZES[world][rank])
    for weights in (None, WEIGHTS):
        expected = outcome(None, slice(None), weights)
        got = outcome(torch.distributed.group.WORLD, rows, weights)
        torch.testing.assert_close(got[0], expected[0], rtol=1e-12, atol=1e-13, equal_nan=True)
        torch.testing.assert_close(got[1], expected[1], rtol=1e-11, atol=1e-13, equal_nan=True)
        torch.testing.assert_close(got[2], [t[rows] for t in expected[2]], rtol=1e-11, atol=1e-13, equal_nan=True)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (world,))
    hidden_p, weight_p, _, hidden_q, weight_q, _ = inputs()
    shard = [torch.distributed.tensor.Shard(0)]
    head, ref_head = (torch.distributed.tensor.distribute_tensor(w, mesh, shard) for w in (weight_p, weight_q))
    linear_token_kl(hidden_p, head.requires_grad_(), hidden_q, ref_head).reverse_kl.sum().backward()
    whole = weight_p.requires_grad_()
    linear_token_kl(hidden_p, whole, hidden_q, weight_q).reverse_kl.sum().backward()
    torch.testing.assert_close(head.grad.full_tensor(), whole.grad, rtol=1e-11, atol=1e-13)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_parts_of_the_vocabulary_give_the_values_and_gradients_of_the_whole(world):
    # The processes are forked from a server that has imported the modules once.
    multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            compare, (world, os.path.join(folder, "store")), nprocs=world, start_method="forkserver"
        )
