"""Compare a VAE with a KL budget to pythae's beta-VAE, on scikit-learn's digits: likelihood at equal KL.

    .venv/bin/python -m pip install pythae
    .venv/bin/python benchmarks/vae.py           3 seeds, 4 betas: about 10 minutes on 2 cores
    .venv/bin/python benchmarks/vae.py --quick   one seed, one beta, not stored

Both models have the same layers, training images, batch size, learning rate of Adam, number of steps and pixel
likelihood. pythae's model is trained by pythae's trainer at a fixed beta. Its KL on the held-out images is then the
budget of Kullback's model. The same function evaluates both models on the same held-out images. The times are processor
seconds of training in one thread, which other processes on the machine affect less than the elapsed time.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median

import numpy as np
import results
import torch
from pythae.models import BetaVAE, BetaVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from safetensors.torch import load_file

from kullback.runs.run_directory import RunDirectory
from kullback.train.vae.data import Images, load_images
from kullback.train.vae.evaluation import evaluate
from kullback.train.vae.models import VAE
from kullback.train.vae.train import LatentPlan, latent_budget, train_latent

LATENTS, HIDDEN, BATCH, RATE = 16, 256, 128, 1e-3
KEYS = {"KL": "kl_posterior_prior_per_image", "ELBO": "elbo", "log p(x)": "log_likelihood"}
LIBRARIES = ("pythae", "Kullback")
COLUMNS = [
    "beta",
    "seed",
    *(f"{quantity}, {library}" for quantity in KEYS for library in LIBRARIES),
    *(f"processor time of {library}, s" for library in LIBRARIES),
]


class _Encoder(BaseEncoder):
    """The encoder of Kullback's VAE with the interface of pythae."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.inner = model.encoder

    def forward(self, x: torch.Tensor) -> ModelOutput:
        loc, scale = self.inner(x[:, 0])
        return ModelOutput(embedding=loc, log_covariance=2 * scale.log())


class _Decoder(BaseDecoder):
    """The decoder of Kullback's VAE with the interface of pythae."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.inner = model.decoder

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.inner(z).sigmoid()[:, None])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    results.add_save_option(parser)
    options = parser.parse_args(arguments)
    if options.quick:
        options.betas, options.seeds, options.epochs = [1.0], [0], 40
    print(results.markdown((COLUMNS, [])))
    torch.set_num_threads(1)
    rows, differences = [], []
    for beta in options.betas:
        for seed in options.seeds:
            images = load_images("digits", seed=seed)
            held_out = torch.from_numpy(images.held_out)
            beta_vae, steps, pythae_seconds = _train_pythae(images, beta, seed, options.epochs)
            pythae = evaluate(beta_vae, held_out, None, step=steps)
            budget_vae, seconds = _train_kullback(images, pythae["kl_posterior_prior_per_image"], seed, steps)
            kullback = evaluate(budget_vae, held_out, None, step=steps)
            cells = [f"{row[key]:.2f}" for key in KEYS.values() for row in (pythae, kullback)]
            rows.append([f"{beta:g}", str(seed), *cells, f"{pythae_seconds:.1f}", f"{seconds:.1f}"])
            differences.append([*(kullback[key] - pythae[key] for key in KEYS.values()), seconds / pythae_seconds])
            print(results.markdown_row(rows[-1]), flush=True)
    table = difference_table(differences)
    print(f"\n{results.markdown(table)}")
    if not (options.quick or options.no_save):
        tables = {"pythae": (COLUMNS, rows), "differences": table}
        results.save("vae", tables, packages=("torch", "scikit-learn", "pythae"))


def difference_table(differences: Sequence[Sequence[float]]) -> results.Table:
    """Return the mean differences over the runs, with the standard error for log p(x), and the ratio of the times."""
    *columns, ratios = zip(*differences, strict=True)
    kl, elbo, likelihood = map(fmean, columns)
    error = float(np.std([row[2] for row in differences]) / len(differences) ** 0.5)
    rows = [["KL", f"{kl:+.2f}"], ["ELBO", f"{elbo:+.2f}"], ["log p(x)", f"{likelihood:+.2f} ± {error:.2f}"]]
    rows.append(["time", f"{median(ratios):.2f} times (median)"])
    return ["quantity", "mean of Kullback minus pythae, nats an image"], rows


def _train_pythae(images: Images, beta: float, seed: int, epochs: int) -> tuple[VAE, int, float]:
    """Return a beta-VAE that pythae trained, the number of steps, and the processor seconds."""
    torch.manual_seed(seed)
    model = VAE((8, 8), LATENTS, HIDDEN)
    config = BetaVAEConfig(input_dim=(1, 8, 8), latent_dim=LATENTS, reconstruction_loss="bce", beta=beta)
    beta_vae = BetaVAE(config, encoder=_Encoder(model), decoder=_Decoder(model))
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, learning_rate=RATE, seed=seed, no_cuda=True,
            per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
        )  # fmt: skip
        data = [{"data": torch.from_numpy(image)[None]} for image in images.train]
        trainer = BaseTrainer(model=beta_vae, train_dataset=_Data(data), training_config=settings)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
        steps = epochs * len(trainer.train_loader)
    return model, steps, seconds


class _Data(torch.utils.data.Dataset):
    """Rows with the interface of pythae's data sets."""

    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return ModelOutput(**self.rows[index])


def _train_kullback(images: Images, nats: float, seed: int, steps: int) -> tuple[VAE, float]:
    """Return a VAE that was trained with a KL budget, and the processor seconds."""
    with tempfile.TemporaryDirectory() as folder:
        plan = LatentPlan(
            "digits", steps, Path(folder) / "run", budget=latent_budget(nats), latents=LATENTS, hidden=HIDDEN,
            learning_rate=RATE, batch_size=BATCH, seed=seed, evaluate_every=100, save_every=steps,
        )  # fmt: skip
        start = time.process_time()
        train_latent(plan, images)
        seconds = time.process_time() - start
        model = VAE((8, 8), LATENTS, HIDDEN)
        model.load_state_dict(load_file(RunDirectory(plan.output).model / "model.safetensors"))
    return model, seconds


if __name__ == "__main__":
    main()
