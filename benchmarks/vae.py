"""A VAE inside a KL budget against pythae's beta-VAE, on scikit-learn's digits: likelihood at equal KL.

    .venv/bin/python -m pip install pythae
    .venv/bin/python benchmarks/vae.py           3 seeds, 4 betas: about 10 minutes on 2 cores
    .venv/bin/python benchmarks/vae.py --quick   one seed, one beta

Both have the same layers, the same images, batches of the same size, Adam at the same rate, as many steps, and the same
cost of pixels. pythae's model is trained by pythae's own trainer at a fixed beta; ours then is given a budget of the KL
that it came to on the held-out images. Both are judged by the same function on the same held-out images.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from pythae.models import BetaVAE, BetaVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from kullback.runs.run_directory import RunDirectory
from kullback.train.vae.data import Images, load_images
from kullback.train.vae.evaluation import evaluate
from kullback.train.vae.models import VAE
from kullback.train.vae.train import LatentPlan, latent_budget, train_latent

LATENTS, HIDDEN, BATCH, RATE = 16, 256, 128, 1e-3
HEADER = (
    "| beta | seed | KL, pythae | KL, ours | ELBO, pythae | ELBO, ours | log p(x), pythae | log p(x), ours "
    "| s, pythae | s, ours |"
)


class _Encoder(BaseEncoder):
    """Ours, as pythae asks for it."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.inner = model.encoder

    def forward(self, x: torch.Tensor) -> ModelOutput:
        loc, scale = self.inner(x[:, 0])
        return ModelOutput(embedding=loc, log_covariance=2 * scale.log())


class _Decoder(BaseDecoder):
    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.inner = model.decoder

    def forward(self, z: torch.Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.inner(z).sigmoid()[:, None])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.25, 0.5, 1.0, 2.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.betas, options.seeds, options.epochs = [1.0], [0], 40
    rows, gains = [HEADER, "|---" * (HEADER.count("|") - 1) + "|"], []
    for beta in options.betas:
        for seed in options.seeds:
            images = load_images("digits", seed=seed)
            theirs, steps, their_seconds = _pythae(images, beta, seed, options.epochs)
            judged = torch.from_numpy(images.held_out)
            told = evaluate(theirs, judged, None, step=steps)
            ours, our_seconds = _ours(images, told["kl_posterior_prior_per_image"], seed, steps)
            mine = evaluate(ours, judged, None, step=steps)
            keys = ("kl_posterior_prior_per_image", "elbo", "log_likelihood")
            cells = [f"{row[key]:.2f}" for key in keys for row in (told, mine)]
            rows.append(f"| {beta:g} | {seed} | {' | '.join(cells)} | {their_seconds:.0f} | {our_seconds:.0f} |")
            gains.append([mine[key] - told[key] for key in keys])
            print(rows[-1], flush=True)
    print("\n".join(rows))
    kl, elbo, likelihood = (fmean(column) for column in zip(*gains, strict=True))
    error = float(np.std([one[2] for one in gains]) / len(gains) ** 0.5)
    print(f"\nours less pythae's, means: KL {kl:+.2f}, ELBO {elbo:+.2f}, log p(x) {likelihood:+.2f} ± {error:.2f} nats")


def _pythae(images: Images, beta: float, seed: int, epochs: int) -> tuple[VAE, int, float]:
    torch.manual_seed(seed)
    model = VAE((8, 8), LATENTS, HIDDEN)
    config = BetaVAEConfig(input_dim=(1, 8, 8), latent_dim=LATENTS, reconstruction_loss="bce", beta=beta)
    theirs = BetaVAE(config, encoder=_Encoder(model), decoder=_Decoder(model))
    with tempfile.TemporaryDirectory() as folder:
        settings = BaseTrainerConfig(
            output_dir=folder, num_epochs=epochs, learning_rate=RATE, seed=seed, no_cuda=True,
            per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
        )  # fmt: skip
        data = [{"data": torch.from_numpy(one)[None]} for one in images.train]
        trainer = BaseTrainer(model=theirs, train_dataset=_Data(data), training_config=settings)
        began = time.perf_counter()
        trainer.train()
        seconds = time.perf_counter() - began
        steps = epochs * len(trainer.train_loader)
    return model, steps, seconds


class _Data(torch.utils.data.Dataset):
    def __init__(self, rows: list) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int):
        return ModelOutput(**self.rows[index])


def _ours(images: Images, nats: float, seed: int, steps: int) -> tuple[VAE, float]:
    with tempfile.TemporaryDirectory() as folder:
        plan = LatentPlan(
            "digits", steps, Path(folder) / "run", budget=latent_budget(nats), latents=LATENTS, hidden=HIDDEN,
            learning_rate=RATE, batch_size=BATCH, seed=seed, evaluate_every=100, save_every=steps,
        )  # fmt: skip
        began = time.perf_counter()
        train_latent(plan, images)
        seconds = time.perf_counter() - began
        from safetensors.torch import load_file

        model = VAE((8, 8), LATENTS, HIDDEN)
        model.load_state_dict(load_file(RunDirectory(plan.output).model / "model.safetensors"))
    return model, seconds


if __name__ == "__main__":
    main()
