"""Autoencoders and bottlenecks: KL term, schedules, free bits, data, budget, collapse warning and resuming."""

import json
import math
import subprocess
import sys
import time
from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
from PIL import Image

from kullback.cli import main
from kullback.errors import InputError, ParameterError
from kullback.runs.run_directory import RunDirectory
from kullback.train.vae.beta_schedules import Constant, Cyclical, FreeBits, Linear, kl_with_free_bits
from kullback.train.vae.budget_step import encoder_budget_step
from kullback.train.vae.data import Images, load_images
from kullback.train.vae.evaluation import collapse_warning, evaluate
from kullback.train.vae.models import VAE, Bottleneck, kl_to_prior
from kullback.train.vae.train import LatentPlan, latent_budget, train_latent

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def digits():
    return load_images("digits")


def test_the_kl_term_equals_the_kl_of_torch():
    torch.manual_seed(0)
    loc, scale = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.rand(7, 5, dtype=torch.float64) + 0.1
    kl = kl_to_prior(loc, scale)
    prior = torch.distributions.Normal(torch.zeros(()).double(), torch.ones(()).double())
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(loc, scale), prior)
    torch.testing.assert_close(kl, expected, rtol=1e-13, atol=1e-15)
    (gradient,) = torch.autograd.grad(kl.sum(), loc)
    torch.testing.assert_close(gradient, loc.detach())


def test_the_kl_term_keeps_its_digits():
    scale = torch.tensor([1 + 2**-20, 1 - 2**-21, 3.0, 1e-20], dtype=torch.float32)
    kl = kl_to_prior(torch.zeros(4), scale)
    with mpmath.workdps(40):
        exact = [float((mpmath.mpf(s) ** 2 - 1) / 2 - mpmath.log(s)) for s in scale.tolist()]
    assert kl.tolist() == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_the_kl_term_refuses_standard_deviations_that_are_not_finite_and_positive(scale):
    with pytest.raises(ParameterError, match=r"scale\[1\] is"):
        kl_to_prior(torch.zeros(2), torch.tensor([1.0, scale]))


def test_free_bits_match_a_calculation_by_hand():
    kl = torch.tensor([[0.2, 3.0, 0.0], [0.4, 1.0, 0.1]], requires_grad=True)
    assert kl_with_free_bits(kl, None).item() == pytest.approx((3.2 + 1.5) / 2)
    # The batch means of the dimensions are 0.3, 2 and 0.05.
    limited_dimensions = kl_with_free_bits(kl, FreeBits(0.25))
    assert limited_dimensions.item() == pytest.approx(0.3 + 2.0 + 0.25)
    (gradient,) = torch.autograd.grad(limited_dimensions, kl)
    assert gradient.tolist() == [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0]]
    limited_examples = kl_with_free_bits(kl, FreeBits(2.0, of="example"))
    assert limited_examples.item() == pytest.approx((3.2 + 2.0) / 2)
    (gradient,) = torch.autograd.grad(limited_examples, kl)
    assert gradient.tolist() == [[0.5, 0.5, 0.5], [0.0, 0.0, 0.0]]


def test_schedules_at_selected_steps():
    assert [Constant(2.0).beta(step) for step in (1, 10_000)] == [2.0, 2.0]
    assert [Linear(2.0, warmup=10).beta(step) for step in (1, 5, 10, 11)] == [0.2, 1.0, 2.0, 2.0]
    cycles = Cyclical(1.0, total=100, cycles=2, ratio=0.5)
    assert [cycles.beta(step) for step in (1, 26, 50, 51, 76)] == [0.0, 1.0, 1.0, 0.0, 1.0]
    assert cycles.beta(11) == pytest.approx(0.4)


def test_likelihoods_are_densities():
    """The cost is -log N(x; mean, noise) for the Gaussian likelihood, and the cross-entropy for the Bernoulli."""
    torch.manual_seed(1)
    z, x = torch.randn(3, 2), torch.rand(3, 8, 8)
    for likelihood in ("bernoulli", "gaussian"):
        model = VAE((8, 8), 2, 16, likelihood, 0.2)
        mean = model.decode(z)
        if likelihood == "gaussian":
            expected = -torch.distributions.Normal(mean, 0.2).log_prob(x).flatten(1).sum(1)
        else:
            expected = -(x * mean.log() + (1 - x) * (1 - mean).log()).flatten(1).sum(1)
        torch.testing.assert_close(model.cost(z, x), expected, rtol=1e-5, atol=1e-4)


def test_the_likelihood_estimate_is_exact_where_the_posterior_is_exact():
    """With an exact posterior all importance weights are equal, and the evidence lower bound is the likelihood."""
    torch.manual_seed(0)
    model = VAE((8, 8), 1, 4, "gaussian", 0.5)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.zero_()
        for parameter in model.encoder.parameters():
            parameter.zero_()  # q(z | x) is the prior, which is the posterior of a constant decoder
    x = torch.rand(30, 8, 8)
    row = evaluate(model, x, None, step=3)
    expected = -(0.5 * ((x - 0.5) / 0.5) ** 2 + math.log(0.5) + 0.5 * math.log(2 * math.pi)).flatten(1).sum(1).mean()
    assert row["log_likelihood"] == pytest.approx(float(expected), rel=1e-5)
    assert row["elbo"] == pytest.approx(float(expected), rel=1e-5)
    fewer = evaluate(model, x, None, step=3, likelihood=False)
    assert fewer == {name: value for name, value in row.items() if not name.startswith("log_likelihood")}
    assert row["kl_posterior_prior_per_image"] == 0
    assert row["active_units"] == 0
    assert "decrease beta (4)" in (collapse_warning(row, 4.0, has_budget=False) or "")
    assert "a larger --budget" in (collapse_warning(row, 4.0, has_budget=True) or "")


def test_a_bottleneck_is_evaluated_with_one_latent_sample_at_a_time():
    """The head reads the sign of one latent variable z ~ N(m, 1), whose probability of being positive is Phi(m)."""
    model, mean = Bottleneck((8, 8), 1, 4, 2), 0.3
    loc, scale = torch.full((4000, 1), mean), torch.ones(4000, 1)
    model.posterior = lambda _: (loc, scale)
    model.head = torch.nn.Linear(1, 2, bias=False)
    with torch.no_grad():
        model.head.weight.copy_(torch.tensor([[-1000.0], [1000.0]]))
    row = evaluate(model, torch.zeros(4000, 8, 8), torch.ones(4000, dtype=torch.long), step=1)
    probability = 0.5 + math.erf(mean / math.sqrt(2)) / 2
    assert row["accuracy"] == pytest.approx(probability, abs=0.01)  # a mean over 16 samples would have 0.88


@pytest.mark.parametrize("size", [(8, 8), (28, 28), (17, 22)])
def test_decoded_images_have_the_size_of_the_input(size):
    x = torch.rand(3, *size)
    model = VAE(size, 4, 32)
    loc, scale = model.posterior(x)
    assert loc.shape == scale.shape == (3, 4)
    assert model.decode(loc).shape == x.shape
    assert Bottleneck(size, 4, 32, 10).cost(loc, x, torch.tensor([0, 1, 9])).shape == (3,)


@pytest.mark.parametrize(("target", "rate"), [(2.0, 3e-3), (10.0, 1e-3)])
def test_the_budget_is_met(tmp_path, digits, target, rate):
    plan = LatentPlan("digits", 700, tmp_path / "run", budget=latent_budget(target), learning_rate=rate, hidden=64)
    assert train_latent(plan, digits)
    run = RunDirectory(tmp_path / "run")
    rows = [row["kl_posterior_prior_per_image"] / target for row in run.evaluations() if row["step"] >= 400]
    assert len(rows) == 4
    assert all(0.9 < value < 1.1 for value in rows), rows
    assert max(row["kl_posterior_prior_per_image"] for row in run.evaluations()) < 1.15 * target  # early steps included
    assert {"kl_filtered", "learning_rate_scale", "displacement_scale"} <= run.metrics()[-1].keys()
    assert run.evaluations()[-1]["elbo"] > run.evaluations()[0]["elbo"] + 10
    assert not any("alarm" in row for row in run.evaluations()[1:])
    assert [row["step"] for row in run.evaluations() if "log_likelihood" in row] == [700]
    assert (run.model / "model.safetensors").is_file()
    assert len(run.pictures()["after"]) == 5


def test_the_budget_step_moves_posteriors_towards_the_prior(digits):
    torch.manual_seed(0)
    x = torch.from_numpy(digits.train)
    model = VAE((8, 8), 4, 16)

    def rate():
        return float(kl_to_prior(*model.posterior(x)).sum(1).double().mean().detach())

    before = rate()
    step = encoder_budget_step(model, x)
    assert step.held_out.kl == pytest.approx(before, rel=0.1)
    budget = latent_budget(before / 4).update(before, std_error=before / 50, count=128)
    updated, factor = step.apply(budget)
    # Near the prior the KL is proportional to the square of the scale, and the brake corrects the remainder.
    assert factor == pytest.approx(0.5, rel=0.1)
    assert rate() == pytest.approx(before / 4, rel=0.1)
    assert updated.filtered_kl == pytest.approx(step.held_out.kl, rel=0.05)
    with torch.no_grad():
        for layer in (model.encoder.loc, model.encoder.log_scale):
            layer.weight.mul_(0)
            layer.bias.mul_(0)
    assert rate() == 0.0


def test_a_collapsed_run_has_a_warning(tmp_path, digits):
    plan = LatentPlan("digits", 150, tmp_path / "run", schedule=Constant(100.0), hidden=32, evaluate_every=50)
    assert train_latent(plan, digits)
    last = RunDirectory(tmp_path / "run").evaluations()[-1]
    assert last["active_units"] == 0
    assert "posterior collapse" in last["alarm"]


def test_a_bottleneck_trades_accuracy_for_nats(tmp_path, digits):
    accuracies = []
    for nats in (0.3, 4.0):
        path = tmp_path / str(nats)
        budget = latent_budget(nats)
        assert train_latent(LatentPlan("digits", 700, path, "bottleneck", budget, hidden=64), digits)
        last = RunDirectory(path).evaluations()[-1]
        assert last["kl_posterior_prior_per_image"] == pytest.approx(nats, rel=0.25)
        # I(z; label) is at most the KL, so that the cross-entropy is at least log 10 - KL.
        assert last["cross_entropy"] > math.log(10) - last["kl_posterior_prior_per_image"] - 0.1
        accuracies.append(last["accuracy"])
        # Fano's inequality: H(class | z) <= h(error) + error log 9 for ten classes that are equally frequent.
        error = 1 - last["accuracy"]
        fano = -error * math.log(error) - (1 - error) * math.log(1 - error) + error * math.log(9)
        assert fano > math.log(10) - last["kl_posterior_prior_per_image"] - 0.1
    assert accuracies[1] > 0.75 > accuracies[0] + 0.3


def test_a_resumed_run_is_identical_to_an_uninterrupted_run(tmp_path, capsys):
    def arguments(name, *more):
        common = ["train", "vae", "--budget", "4", "--steps", "550", "--hidden", "16", "--output", str(tmp_path / name)]
        return [*common, "--evaluate-every", "200", *more]

    assert main(arguments("uninterrupted", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["ended"] is True
    process = subprocess.Popen([sys.executable, "-m", "kullback", *arguments("killed")], stdout=subprocess.DEVNULL)
    killed = RunDirectory(tmp_path / "killed")
    deadline = time.monotonic() + 60
    while killed.last_checkpoint() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert main(arguments("killed", "--resume")) == 0
    uninterrupted = RunDirectory(tmp_path / "uninterrupted")
    keys = ("step", "kl_posterior_prior_per_image", "distortion", "beta", "kl_filtered")
    assert [[row[key] for key in keys] for row in uninterrupted.metrics()] == [
        [row[key] for key in keys] for row in killed.metrics()
    ]
    assert uninterrupted.evaluations() == killed.evaluations()
    assert "data:image/png;base64" in killed.report.read_text()


def test_valid_data_is_loaded_and_invalid_data_is_rejected(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "good.npy", rng.random((30, 5, 6)))
    np.save(tmp_path / "bytes.npy", rng.integers(0, 256, (30, 5, 6), dtype=np.uint8))
    images = load_images(str(tmp_path / "good.npy"))
    assert images.train.shape == (24, 5, 6)
    assert images.held_out.shape == (6, 5, 6)
    assert load_images(str(tmp_path / "bytes.npy")).train.max() <= 1
    bad = {"nan": np.full((30, 5, 6), np.nan), "range": np.full((30, 5, 6), 1.5), "flat": np.zeros((30, 5)),
           "few": np.zeros((3, 5, 6)), "objects": np.array(["a"] * 30)}  # fmt: skip
    for name, array in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
        with pytest.raises(InputError, match="expected"):
            load_images(str(tmp_path / f"{name}.npy"))
    (tmp_path / "text.npy").write_text("no array")
    for name in ("text.npy", "absent.npy"):
        with pytest.raises(InputError, match="expected"):
            load_images(str(tmp_path / name))
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(InputError, match="found none"):
        load_images(str(folder))
    for i in range(25):
        Image.fromarray(rng.integers(0, 256, (4, 7), dtype=np.uint8)).save(folder / f"{i}.png")
    assert load_images(str(folder)).train.shape == (20, 4, 7)
    Image.new("L", (3, 3)).save(folder / "99.png")
    with pytest.raises(InputError, match="equal size"):
        load_images(str(folder))
    (folder / "99.png").write_bytes(b"not an image")
    with pytest.raises(InputError, match="not a readable image"):
        load_images(str(folder))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budget", "0"], "--budget: expected a KL budget that is a finite number"),
        (["--budget", "3", "--beta", "1"], "the budget determines beta"),
        (["--beta", "-1"], "--beta"),
        (["--free-bits", "-1"], "--free-bits"),
        (["--latents", "0"], "--latents"),
        (["--data", "nowhere"], "not found"),
        (["--learning-rate", "7"], "--learning-rate"),
    ],
)
def test_invalid_options_give_a_one_line_message(tmp_path, capsys, words, message):
    from kullback.cli import main

    assert main(["train", "vae", "--output", str(tmp_path / "run"), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path(tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(tmp_path, digits):
    plan = LatentPlan("digits", 2, tmp_path / "run", hidden=8)
    assert train_latent(plan, digits)
    with pytest.raises(InputError, match="already exists"):
        train_latent(plan, digits)
    with pytest.raises(InputError, match="started with latents"):
        train_latent(LatentPlan("digits", 2, tmp_path / "run", hidden=8, latents=3), digits, resume=True)


def test_the_minimum_number_of_images_is_sufficient(tmp_path):
    np.save(tmp_path / "few.npy", np.random.default_rng(0).random((20, 5, 6)))
    plan = LatentPlan(str(tmp_path / "few.npy"), 3, tmp_path / "run", hidden=8, latents=2)
    assert train_latent(plan, load_images(plan.data))
    rows = RunDirectory(tmp_path / "run").pictures()["after"]
    assert [len(row["images"]) for row in rows] == [4, 4, 16, 9, 9]
    assert rows[-1]["title"] == "from image 2 to image 4"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: (x[:1], x), "images.train: expected at least 2 images"),
        (lambda x: (x, x[:0]), "images.held_out: expected at least 1 images"),
        (lambda x: (x, x[:, :3]), r"of the size \(4, 4\), got the shape \(8, 3, 4\)"),
        (lambda x: (x.tolist(), x), "images.train: expected an array of floats of shape .* got list"),
        (lambda x: (x * 255, x), r"expected values in \[0, 1\], got"),
        (lambda x: (np.full_like(x, np.nan), x), r"got nan at index \(0, 0, 0\)"),
        (lambda x: (x, x, np.zeros(3, np.int64)), "one class for each of 8 images"),
    ],
    ids=["one image", "no held-out images", "other size", "list", "bytes", "nan", "labels"],
)
def test_images_from_python_are_checked(change, message, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((8, 4, 4), np.float32)
    plan = LatentPlan("random", 1, tmp_path / "run", budget=latent_budget(1.0), latents=2, hidden=8, batch_size=2)
    with pytest.raises(InputError, match=message):
        train_latent(plan, Images(*change(pixels)))
    assert not plan.output.exists()


def test_images_in_float64_are_accepted(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).random((8, 4, 4))
    plan = LatentPlan("random", 1, tmp_path / "run", budget=latent_budget(1.0), latents=2, hidden=8, batch_size=2)
    assert train_latent(plan, Images(pixels, pixels))


def test_the_report_keeps_the_budgets_that_are_not_named_again(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["train", "bottleneck", "--latents", "2", "--hidden", "8", "--steps", "4", "--output", "runs"]
    assert main([*words, "--budgets", "1", "1.0000000001"]) == 2
    assert "expected budgets that differ in six digits, got 1.0 and 1.0000000001" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([*words, "--budgets", "2", "1", "3"]) == 0
    assert main([*words, "--budgets", "2", "--resume"]) == 0
    report = (tmp_path / "runs" / "report.html").read_text()
    assert all(f"{nats} nats" in report for nats in (1, 2, 3))


def test_images_of_16_bits_are_scaled(tmp_path: Path) -> None:
    """Pillow clips them at 255 when it converts them to 8 bits."""
    from PIL import Image

    values = np.random.default_rng(0).random((20, 4, 4))
    for bits, kind in ((8, np.uint8), (16, np.uint16)):
        (tmp_path / str(bits)).mkdir()
        for i, value in enumerate(values):
            Image.fromarray((value * (2**bits - 1)).astype(kind)).save(tmp_path / str(bits) / f"{i:02}.png")
    coarse, fine = (load_images(str(tmp_path / name)) for name in ("8", "16"))
    np.testing.assert_allclose(fine.train, coarse.train, atol=1 / 255)
    (tmp_path / "32").mkdir()
    for i, value in enumerate(values):
        Image.fromarray(value.astype(np.float32)).save(tmp_path / "32" / f"{i:02}.tiff")
        (tmp_path / "32" / f"{i:02}.tiff").rename(tmp_path / "32" / f"{i:02}.png")
    with pytest.raises(InputError, match="one with 32 bits"):
        load_images(str(tmp_path / "32"))


@pytest.mark.parametrize("budget", [None, latent_budget(3.0)], ids=["without a budget", "with a budget"])
def test_a_learning_rate_that_is_too_high_stops_with_its_step_and_its_remedy(digits, tmp_path, budget):
    plan = LatentPlan("digits", 50, tmp_path / "run", budget=budget, learning_rate=0.9)
    with pytest.raises(InputError, match=r"^step \d+: expected .*; lower --learning-rate; training stops"):
        train_latent(plan, digits)
