"""A model's folder, as `save_pretrained` of transformers writes it."""

import json
import logging
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

from emu.errors import InputError, suggestion
from emu.libraries import library

TASKS = {
    "feature-extraction": "",
    "fill-mask": "ForMaskedLM",
    "image-classification": "ForImageClassification",
    "question-answering": "ForQuestionAnswering",
    "text-classification": "ForSequenceClassification",
    "text-generation": "ForCausalLM",
    "token-classification": "ForTokenClassification",
}
#: What `emu evaluate` and others need beside the model: its labels, image processor and tokenizer.
BESIDE_THE_MODEL = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)

_OWN_MODELS = {"cdeit": "emu.train.cdeit"}  # a model_type of config.json, and the module whose import makes it known


def load_model(folder: Path, task: str | None = None, fresh: bool = False) -> Any:
    """The model of a folder, with float32 weights.

    Args:
        folder: what `save_pretrained` wrote.
        task: of the names in `TASKS`; None for the class in config.json.
        fresh: take the configuration alone, and draw the weights at random.

    Raises:
        InputError: there is no such folder, no configuration, no weights or no such architecture.
    """
    transformers = library("transformers", "train")
    config = _config(folder)
    if not fresh:
        _check_weights(folder)
    architectures = config.get("architectures") or []
    if task is None and not architectures:
        raise InputError(f"{folder / 'config.json'} names no architecture: say what the model does (--task).")
    if task is not None and task not in TASKS:
        raise InputError(f"There is no task '{task}'{suggestion(task, TASKS)}: choose {', '.join(TASKS)}.")
    own = _OWN_MODELS.get(str(config.get("model_type")))
    module = import_module(own) if own else None
    if task is not None:
        kind: Any = getattr(transformers, f"AutoModel{TASKS[task]}")
    else:
        kind = getattr(transformers, architectures[0], None) or getattr(module, architectures[0], None)
    if kind is None or not hasattr(kind, "from_pretrained"):
        raise InputError(
            f"{folder / 'config.json'} names the architecture {architectures[0]}, which transformers "
            f"{transformers.__version__} does not have: name one that it has, or the task of the model (--task)."
        )
    if fresh:
        return _drawn(kind, folder)
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        model, report = kind.from_pretrained(
            str(folder), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # transformers fails in every way that a file can be wrong
        raise InputError(f"The model in {folder} cannot be loaded: {reason(error)}.") from None
    finally:
        logging.disable(disabled)
    missing = sorted(report["missing_keys"])
    if missing:
        raise InputError(
            f"{folder} lacks {len(missing)} tensors of a {type(model).__name__}, such as {missing[0]}: name the task "
            "that the model was trained for (--task), or train it first."
        )
    return model.float()


def _drawn(kind: Any, folder: Path) -> Any:
    """A model of the folder's configuration with random weights."""
    config_class = getattr(kind, "config_class", None)
    if config_class is None:
        config_class = library("transformers", "train").AutoConfig
    try:
        config = config_class.from_pretrained(str(folder), local_files_only=True)
        model = kind.from_config(config) if hasattr(kind, "from_config") else kind(config)
    except Exception as error:  # transformers fails in every way that a file can be wrong
        raise InputError(f"{folder / 'config.json'} describes no model: {reason(error)}.") from None
    torch = library("torch", "train")
    spread = getattr(config, "initializer_range", 0.02)
    for name, parameter in model.named_parameters():
        # DeiT of transformers leaves tokens and positions at zero, where ViT draws them.
        if name.endswith(("_token", "position_embeddings")) and not bool(parameter.detach().any()):
            torch.nn.init.trunc_normal_(parameter, std=spread)
    return model


def _config(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        if folder.exists():
            raise InputError(f"{folder} is a file: give the folder that holds the model's config.json.")
        raise InputError(
            f"There is no folder {folder}: give one that save_pretrained wrote, or that 'hf download' did."
        )
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} has no config.json: give a folder that save_pretrained wrote.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}.") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no configuration of a model: give a folder that save_pretrained wrote.")
    return config


def _check_weights(folder: Path) -> None:
    if any((folder / f"model.safetensors{ending}").is_file() for ending in ("", ".index.json")):
        return
    pickles = sorted(each.name for ending in ("bin", "pt", "pth") for each in folder.glob(f"*.{ending}"))
    if pickles:
        raise InputError(
            f"{folder} holds weights as {pickles[0]}, a pickle, which can run any code and is not loaded: load it "
            "where you trust it, and save_pretrained writes model.safetensors."
        )
    raise InputError(f"{folder} has no weights: model.safetensors is missing.")


def reason(error: BaseException) -> str:
    """The first line of an error that says something, not at any length."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return textwrap.shorten(lines[0] if lines else type(error).__name__, 200, placeholder=" ...").rstrip(".:")
