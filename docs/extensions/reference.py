"""The public modules of the package, and the reStructuredText of the API reference that is generated from them.

`PAGES` is the only list of public modules: the API reference documents each name of their `__all__`, and
tests/test_docs.py checks that each name of `kullback.__all__` is among these.
"""

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple

from docstrings import escape

import kullback

__all__ = ["PAGES", "Entry", "Page", "entries", "index_text", "page_text", "public_path", "summary_text"]


class Page(NamedTuple):
    """One page of the API reference.

    Args:
        title: The heading.
        modules: The public modules in order, each with the names to document: None for all names of its `__all__`,
            or a tuple of the public ones where the rest is for use inside the package.
    """

    title: str
    modules: dict[str, tuple[str, ...] | None]


class Entry(NamedTuple):
    """A documented object.

    Args:
        module: The module that defines or exports it.
        name: Its name in that module.
        path: The dotted path that users import it by.
        value: The object.
    """

    module: str
    name: str
    path: str
    value: Any


# Packages that are imported from directly, rather than from their modules.
_FACADES = ("kullback", "kullback.families", "kullback.fit", "kullback.tokens")

PAGES: dict[str, Page] = {
    "discrete": Page(
        "Arrays: kullback.discrete",
        {
            "kullback.discrete.kl": None,
            "kullback.discrete.entropy": None,
            "kullback.discrete.divergence": None,
            "kullback.numerics.phi": ("phi", "log1p_residual"),
            "kullback.numerics.log_gamma": ("log_gamma_residual",),
        },
    ),
    "distributions": Page(
        "Distributions: kullback.distributions and kullback.measure",
        {
            "kullback.distributions": ("kl", "entropy", "cross_entropy", "register_kl"),
            "kullback.measure": ("measure",),
            "kullback.measure_entropy": None,
            "kullback.result": None,
        },
    ),
    "configuration": Page("The installation: kullback.configuration", {"kullback.configuration": ("show_config",)}),
    "families": Page("Families: kullback.families", {"kullback.families": None}),
    "closed_forms": Page("Closed forms: kullback.closed_forms", {"kullback.closed_forms.registry": ("closed_form",)}),
    "densities": Page("Densities: kullback.densities", {"kullback.densities.density": None}),
    "samples": Page(
        "Samples: kullback.samples",
        {
            "kullback.samples.monte_carlo": None,
            "kullback.samples.counts": None,
            "kullback.samples.clustered_mean": None,
            "kullback.samples.pareto_k": None,
        },
    ),
    "fit": Page("Fits: kullback.fit", {"kullback.fit": None}),
    "tokens": Page(
        "Language models: kullback.tokens", {"kullback.tokens": None, "kullback.tokens.entropy_floor": None}
    ),
    "policy": Page(
        "Penalties and losses: kullback.policy",
        {
            "kullback.policy.penalty": None,
            "kullback.policy.losses": None,
            "kullback.policy.advantages": None,
            "kullback.policy.aggregation": ("Aggregate", "aggregate_tokens"),
            "kullback.policy.distillation": None,
            "kullback.policy.dpo": None,
            "kullback.policy.presets": None,
        },
    ),
    "budget": Page(
        "Budgets and controllers: kullback.budget",
        {"kullback.budget.kl_budget": ("KLBudget", "Unit"), "kullback.budget.controllers": None},
    ),
    "optimum": Page(
        "The exact optimum: kullback.optimum",
        {
            "kullback.optimum.tilt": None,
            "kullback.optimum.best_of_n": None,
            "kullback.optimum.mdp": None,
            "kullback.optimum.soft_value_iteration": None,
            "kullback.optimum.trajectory_kl": ("policy_objective", "trajectory_kl"),
            "kullback.optimum.sequences": None,
        },
    ),
    "compare": Page(
        "Comparison of language models: kullback.compare",
        {
            "kullback.compare.comparison": ("compare",),
            "kullback.compare.results": ("Comparison", "ModelResult", "FreeRunning", "Trajectories", "ModuleShares"),
            "kullback.compare.page": ("write_comparison_page",),
            "kullback.compare.endpoint": None,
            "kullback.compare.text_level": None,
            "kullback.compare.stored_base": None,
            "kullback.compare.bounds": ("BoundComparison", "BoundModel"),
            "kullback.compare.statistics": None,
            "kullback.compare.quantile_sketch": None,
            "kullback.compare.llama_cpp": None,
            "kullback.compare.llama_cpp_statistics": None,
        },
    ),
    "doctor": Page(
        "The doctor: kullback.doctor",
        {
            "kullback.doctor.models": None,
            "kullback.doctor.trl": None,
            "kullback.doctor.run": None,
            "kullback.doctor.finding": None,
            "kullback.doctor.penalty_gradient": ("check_penalty_gradient",),
            "kullback.doctor.kl_value": ("check_kl_value",),
            "kullback.doctor.logged_kl": ("check_logged_kl", "check_learning"),
            "kullback.doctor.budget_and_rewards": ("check_budget", "check_reward_hacking"),
            "kullback.doctor.settings": ("check_settings", "check_ppo_settings"),
        },
    ),
    "integrations": Page(
        "Other libraries: kullback.integrations",
        {
            "kullback.integrations.trl": None,
            "kullback.integrations.trl_distillation": (
                "ExactDistillationTrainer",
                "ExactGKDTrainer",
                "divergence_of_beta",
                "require_same_vocabulary",
            ),
            "kullback.integrations.sb3": None,
            "kullback.integrations.transformers_forward_kl": None,
            "kullback.integrations.lightning": None,
            "kullback.integrations.gymnasium": None,
            "kullback.integrations.torch": ("install", "uninstall"),
            "kullback.integrations.anywidget": None,
        },
    ),
    "train": Page(
        "Training recipes: kullback.train",
        {
            "kullback.train.grpo": None,
            "kullback.train.ppo": None,
            "kullback.train.sft": None,
            "kullback.train.vae.train": None,
        },
    ),
    "runs": Page(
        "Run directories and reports: kullback.runs and kullback.explore",
        {
            "kullback.runs.run_directory": ("RunDirectory",),
            "kullback.explore.report": ("ReportRun", "Table", "write_report"),
            "kullback.explore.explorer": ("explorer_page",),
        },
    ),
    "errors": Page("Errors: kullback.errors", {"kullback.errors": None}),
}


def entries(page: Page) -> Iterator[Entry]:
    """Every documented object of a page, in the order of the modules and of their `__all__`."""
    for module_name, names in page.modules.items():
        module = import_module(module_name)
        for name in module.__all__ if names is None else names:
            value = getattr(module, name)
            yield Entry(module_name, name, public_path(module_name, name, value), value)


def public_path(module_name: str, name: str, value: Any) -> str:
    """The shortest dotted path at which the object is found."""
    for facade in _FACADES:
        package = import_module(facade)
        if module_name.startswith(facade) and name in package.__all__ and getattr(package, name) is value:
            return f"{facade}.{name}"
    return f"{module_name}.{name}"


def page_text(page: Page) -> str:
    """A page of the API reference as reStructuredText; a module's first docstring line introduces its names."""
    parts = [_heading(page.title, "=")]
    for module_name, names in page.modules.items():
        module = import_module(module_name)
        parts += [_heading(module_name, "-"), (inspect.getdoc(module) or "").partition("\n")[0]]
        single = Page(page.title, {module_name: names})
        parts += [_directive(entry) for entry in entries(single)]
    return "\n\n".join(parts) + "\n"


def _heading(text: str, underline: str) -> str:
    return f"{text}\n{underline * len(text)}"


def _directive(entry: Entry) -> str:
    if inspect.isclass(entry.value):
        kind = "exception" if issubclass(entry.value, BaseException) else "class"
        options = "   :members:" if kind == "class" else "   :show-inheritance:"
    elif inspect.isfunction(entry.value):
        kind, options = "function", ""
    else:
        kind, options = "data", "   :no-value:"
    return f".. auto{kind}:: {entry.path}\n{options}".rstrip()


def summary_text() -> str:
    """The names of `kullback.__all__`, each with the first line of its docstring, as a reStructuredText list table."""
    documented = {entry.name: entry for page in PAGES.values() for entry in entries(page)}
    lines = [".. list-table::", "   :widths: 30 70", ""]
    for name in sorted(kullback.__all__, key=str.lower):
        entry = documented[name]
        first = (inspect.getdoc(entry.value) or "").partition("\n")[0]
        lines += [f"   * - :py:obj:`{name} <{entry.path}>`", f"     - {escape(first)}"]
    return "\n".join(lines) + "\n"


def index_text() -> str:
    """The first page of the API reference: the names of `kullback` and the table of contents of the packages."""
    contents = "\n".join(f"   kullback.{name} <{name}>" for name in PAGES)
    return f"""{_heading("API reference", "=")}

Names that ``import kullback`` provides:

{summary_text()}
Every public module, by package:

.. toctree::
   :maxdepth: 1

{contents}
"""
