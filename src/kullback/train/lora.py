"""Low-rank adapters (LoRA) of language models: the option `--lora`, and how an adapter is created and saved."""

import difflib
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kullback.errors import InputError
from kullback.integrations.hub import hub_source

__all__ = ["described_model", "make_lora_config", "parse_lora", "save_model"]

Fields = dict[str, Any]

# Short names of the option, and the names of PEFT.
_ALIASES = {
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "target": "target_modules",
    "rslora": "use_rslora",
    "dora": "use_dora",
}
_BIASES = ("none", "all", "lora_only")
_ALL_LINEAR = "all-linear"
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def _positive_integer(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise ValueError("an integer of 1 or more")
    return int(text)


def _positive_number(text: str) -> float:
    number = _number(text, "a finite number > 0")
    if not 0 < number < math.inf:
        raise ValueError("a finite number > 0")
    return int(number) if number == int(number) else number


def _rate(text: str) -> float:
    number = _number(text, "a number in [0, 1)")
    if not 0 <= number < 1:
        raise ValueError("a number in [0, 1)")
    return number


def _number(text: str, expected: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(expected) from None


def _boolean(text: str) -> bool:
    if text.lower() not in _BOOLEANS:
        raise ValueError("true or false")
    return _BOOLEANS[text.lower()]


def _bias(text: str) -> str:
    if text not in _BIASES:
        raise ValueError(f"one of {', '.join(_BIASES)}")
    return text


def _names(text: str) -> list[str]:
    names = text.split("+")
    if not all(names):
        raise ValueError("names of modules, separated by +, such as q_proj+v_proj")
    return names


def _modules(text: str) -> str | list[str]:
    return text if text == _ALL_LINEAR else _names(text)


_FIELDS: Mapping[str, Callable[[str], Any]] = {
    "r": _positive_integer,
    "lora_alpha": _positive_number,
    "lora_dropout": _rate,
    "target_modules": _modules,
    "exclude_modules": _names,
    "modules_to_save": _names,
    "target_parameters": _names,
    "bias": _bias,
    "use_rslora": _boolean,
    "use_dora": _boolean,
}


def parse_lora(text: str) -> Fields:
    """Parse the value of `--lora` into fields of PEFT's `LoraConfig`, without an import of PEFT.

    Args:
        text: Settings `key=value`, separated by commas. The keys are `r` (the rank, 16 if it is left out), `alpha`
            (twice the rank), `target` ("all-linear", or names of modules that are separated by +), `dropout` (0),
            `bias`, `rslora`, `dora`, and the names that PEFT has for these and for `exclude_modules`,
            `modules_to_save` and `target_parameters`.

    Returns:
        The values by the names of PEFT.

    Raises:
        InputError: A setting is not of the form key=value, its key is unknown (the message gives the most similar key)
            or occurs twice, or its value is invalid.

    Example:
        >>> parse_lora("r=8,target=q_proj+v_proj")
        {'r': 8, 'lora_alpha': 16, 'target_modules': ['q_proj', 'v_proj']}
        >>> parse_lora("rank=8")
        Traceback (most recent call last):
        ...
        kullback.errors.InputError: --lora rank=8: unknown key rank; the nearest is r
    """
    known = [*_ALIASES, *_FIELDS]
    fields: Fields = {}
    for word in text.split(","):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not (key and equals):
            hint = "; names of modules are separated by +" if word.strip() else ""
            example = "r=16,alpha=32,target=all-linear"
            raise InputError(f"--lora {text}: expected key=value, such as {example}, got {word!r}{hint}")
        if key not in known:
            similar = [name for name in known if key.startswith(name) and len(name) < 3]
            nearest = (similar or difflib.get_close_matches(key, known, n=1, cutoff=0.0))[0]
            raise InputError(f"--lora {word.strip()}: unknown key {key}; the nearest is {nearest}")
        name = _ALIASES.get(key, key)
        if name in fields:
            raise InputError(f"--lora {text}: expected each setting once, got {name} twice")
        try:
            fields[name] = _FIELDS[name](value)
        except ValueError as error:
            raise InputError(f"--lora {word.strip()}: expected {error}, got {value!r}") from None
    rank = fields.get("r", 16)
    default = [] if "target_parameters" in fields else _ALL_LINEAR
    return {"r": rank, "lora_alpha": 2 * rank, "target_modules": default, **fields}


def make_lora_config(fields: Mapping[str, Any], model: Any) -> Any:
    """Return PEFT's configuration of an adapter, after a check that the model has its modules.

    Args:
        fields: Values by the names of PEFT, as `parse_lora` returns them.
        model: The language model.

    Returns:
        A `peft.LoraConfig`.

    Raises:
        InputError: The model has no module or parameter of a name; the message gives the most similar name.
    """
    from peft import LoraConfig

    modules = [name for name, _ in model.named_modules()]
    parameters = [name for name, _ in model.named_parameters()]
    for field, known in (
        ("target_modules", modules),
        ("exclude_modules", modules),
        ("modules_to_save", modules),
        ("target_parameters", parameters),
    ):
        wanted = fields.get(field) or []
        for name in [] if isinstance(wanted, str) else wanted:
            if not any(full == name or full.endswith(f".{name}") for full in known):
                last = sorted({full.rpartition(".")[2] for full in known if full and not full[-1].isdecimal()})
                last += [_ALL_LINEAR] if field == "target_modules" else []
                nearest = difflib.get_close_matches(name.rpartition(".")[2], last, n=1, cutoff=0.0)
                kind = "parameter" if field == "target_parameters" else "module"
                raise InputError(
                    f"--lora {field}={'+'.join(wanted)}: {type(model).__name__} has no {kind} {name}; the nearest is "
                    f"{nearest[0]}"
                )
    return LoraConfig(task_type="CAUSAL_LM", **fields)


def described_model(base: Path) -> Fields:
    """Return the entries of config.json that describe the model from which training starts.

    Args:
        base: The directory of the model.

    Returns:
        "model": the path, or the name of a model of the Hugging Face hub, which then has "model_revision" too.

    Example:
        >>> described_model(Path("cache/models--Qwen--Qwen3-0.6B/snapshots/c1899de289a0"))
        {'model': 'Qwen/Qwen3-0.6B', 'model_revision': 'c1899de289a0'}
    """
    source = hub_source(base)
    return {"model": str(base)} if source is None else {"model": source[0], "model_revision": source[1]}


def save_model(model: Any, base: Path, directory: Path) -> None:
    """Save a model, or the adapter of a PEFT model with the name of its base model.

    Args:
        model: A language model, or a PEFT model around one.
        base: The directory from which the base model was loaded.
        directory: The directory that the files are written to.
    """
    from kullback.doctor.forward_pass import base_model

    if base_model(model) is model:  # PEFT 0.18 leaves its configuration on a model whose adapter was merged
        model.save_pretrained(directory)
        return
    name, commit = hub_source(base) or (str(base.resolve()), None)
    for config in model.peft_config.values():
        config.base_model_name_or_path, config.revision = name, commit
    # The embeddings are saved if they are trained; PEFT would compare their size with the model's on the hub.
    model.save_pretrained(directory, save_embedding_layers=False)
