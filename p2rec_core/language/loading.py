"""Language models as P2Rec uses them: a backbone without a language-modelling head, and its tokenizer.

Design choices:
- Only safetensors weights are read and no code of a model's repository is run.
- Causal or encoder is decided by the configuration: ``is_decoder`` makes any model causal; a model type that
  transformers knows as a masked language model (BERT, RoBERTa, ModernBERT, ...) or whose attention is
  declared bidirectional is an encoder; any other type that it knows as a causal language model (Llama, Qwen,
  ...) is causal. A causal model is then probed: a later token must not change an earlier state.
- Every dropout of the language model is set to zero: LoRA has one of its own, and the paper mentions none.
"""

import importlib.util
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, LlamaConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)
from transformers.utils import logging

from p2rec_core.errors import ModelError
from p2rec_core.language.bfloat16 import multiply_in_bfloat16
from p2rec_core.language.identity import (
    BUILT_IN_NAMES,
    RANDOM_MODELS,
    RandomLlama,
    minilm_directory,
    model_identity,
    resolve_model,
)
from p2rec_core.seeds import Initial, initial_seed

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_QUANTISATIONS = ("none", "int8", "nf4")
_SAFETENSORS_REMEDY = "Save the model again with `save_pretrained`, which writes safetensors files."


@dataclass(frozen=True)
class LanguageModel:
    """A loaded language model.

    Attributes:
        model: The backbone without a language-modelling head, in evaluation mode, frozen.
        tokenizer: Its tokenizer.
        causal: Whether a token's state depends on the tokens before it only.
        hidden_size: Width E of the last hidden states.
        label: What a person should see, e.g. ``"random-llama-small (random-init)"``.
        random_init: Whether the weights were drawn at random instead of pre-trained.
        identity: Digest of weights, configuration and tokenizer.
    """

    model: PreTrainedModel
    tokenizer: Any
    causal: bool
    hidden_size: int
    label: str
    random_init: bool
    identity: str

    @property
    def n_positions(self) -> int | None:
        """Tokens that a sequence may have; None where there is no bound."""
        bound = getattr(self.model.config, "max_position_embeddings", None)
        table = getattr(getattr(self.model, "embeddings", None), "position_embeddings", None)
        padding_idx = getattr(table, "padding_idx", None)
        if bound is None:
            return None
        # RoBERTa's positions begin after the padding index
        return int(bound) if padding_idx is None else int(bound) - int(padding_idx) - 1


def load_language_model(
    name_or_path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    quantisation: str = "none",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> LanguageModel:
    """Load a language model from what is on this machine.

    Args:
        name_or_path: ``all-MiniLM-L6-v2``, ``random-MiniLM-L6-v2``, ``random-llama-small``, ``random-llama-tiny``, a
            directory with safetensors weights, or the name of a repository in the local Hugging Face cache.
        revision: Commit or branch of the repository; only for names of repositories.
        dtype: ``float32`` or ``bfloat16``: number format of the frozen weights. On a CPU ``bfloat16`` is that of linear
            layers' weights and products alone.
        quantisation: ``none``, ``int8`` or ``nf4``; the latter two need CUDA and bitsandbytes.
        device: Where the model is put.
        seed: Seed of the built-in random models' weights; it has no effect on others.

    Raises:
        ModelError: There is no such model; it has no safetensors weights, lacks some of its weights, needs
            code of its own, is an encoder-decoder or an adapter; a number format is unknown; or a quantised
            model is asked for without CUDA or bitsandbytes.
    """
    if dtype not in _DTYPES or quantisation not in _QUANTISATIONS:
        raise ModelError(
            f"There is no dtype {dtype!r} with quantisation {quantisation!r}.",
            remedy=f"Use one of {', '.join(_DTYPES)} and one of {', '.join(_QUANTISATIONS)}.",
        )
    device = torch.device(device)
    narrow_products = dtype == "bfloat16" and device.type == "cpu"
    random_init = name_or_path in RANDOM_MODELS
    if random_init:
        if quantisation != "none":
            raise ModelError(
                f"{name_or_path} is initialised at random and cannot be quantised to {quantisation}.",
                remedy="Use quantisation 'none'.",
            )
        tokenizer = _tokenizer(minilm_directory())
        model = _random_model(name_or_path, tokenizer, seed)
        model = model.to(device=device, dtype=torch.float32 if narrow_products else _DTYPES[dtype])
    else:
        directory = resolve_model(name_or_path, revision)
        _check_files(directory)
        model = _pretrained(directory, _DTYPES[dtype], quantisation, device)
        tokenizer = _tokenizer(directory)
    model.eval().requires_grad_(False)
    if narrow_products:
        multiply_in_bfloat16(model)
    causal = _is_causal(model.config, name_or_path)
    hidden_size = _probe(model, causal, name_or_path)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        causal=causal,
        hidden_size=hidden_size,
        label=f"{name_or_path} (random-init)" if random_init else _label(name_or_path),
        random_init=random_init,
        identity=model_identity(name_or_path, revision, seed=seed),
    )


def _label(name_or_path: str) -> str:
    return Path(name_or_path).name if Path(name_or_path).is_dir() else name_or_path


def _tokenizer(directory: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"The tokenizer in {directory} cannot be read: {error}.",
            remedy="Put the model's tokenizer.json and tokenizer_config.json beside its weights.",
        ) from error


def _random_model(name: str, tokenizer: Any, seed: int) -> Any:
    shape = RANDOM_MODELS[name]
    config = (
        _llama_config(shape, tokenizer)
        if isinstance(shape, RandomLlama)
        else _configuration(resolve_model(shape, None))
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(initial_seed(seed, Initial.LANGUAGE_MODEL))
        return _without_pooler(AutoModel.from_config(config))


def _llama_config(shape: RandomLlama, tokenizer: Any) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.n_layers,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_heads,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        eos_token_id=None,
    )


def _check_files(directory: Path) -> None:
    """Refuse a directory whose model would run foreign code, unpickle weights or is no model at all."""
    config_file = directory / "config.json"
    if (directory / "adapter_config.json").exists():
        raise ModelError(
            f"{directory} holds an adapter (adapter_config.json), not a whole model.",
            remedy="Merge the adapter into its base model and save that with `save_pretrained`.",
        )
    if not config_file.is_file():
        raise ModelError(
            f"{directory} holds no config.json, so it is no language model.",
            remedy="Give the directory that `save_pretrained` wrote, or a built-in model:"
            f" {', '.join(BUILT_IN_NAMES)}.",
        )
    try:
        config = json.loads(config_file.read_text("utf-8"))
    except ValueError as error:
        raise ModelError(f"{config_file} is not valid JSON: {error}.", remedy="Fetch the model again.") from error
    if "auto_map" in config:
        raise ModelError(
            f"The model in {directory} needs Python code of its own (auto_map in config.json), which is never run.",
            remedy="Use a model whose architecture transformers itself knows.",
        )
    if not any(directory.glob("*.safetensors")):
        pickled = sorted(p.name for p in directory.glob("*.bin"))
        found = f"only pickled weights ({', '.join(pickled)}), which are never read" if pickled else "no weights"
        raise ModelError(f"{directory} holds no safetensors file but {found}.", remedy=_SAFETENSORS_REMEDY)


def _configuration(directory: Path) -> Any:
    """A model's configuration without dropout.

    Raises:
        ModelError: It cannot be read, or is that of an encoder-decoder.
    """
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"The configuration in {directory} cannot be read: {error}.",
            remedy="Use a model whose architecture transformers itself knows.",
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"The model in {directory} ({config.model_type}) is an encoder-decoder, which P2Rec cannot use.",
            remedy="Use a causal language model or an encoder.",
        )
    _is_causal(config, str(directory))
    _without_dropout(config)
    return config


def _without_pooler(model: Any) -> Any:
    """The model without the layer whose output would be computed and thrown away."""
    if getattr(model, "pooler", None) is not None:
        model.pooler = None
    return model


def _pretrained(directory: Path, dtype: torch.dtype, quantisation: str, device: torch.device) -> Any:
    config = _configuration(directory)
    placement: dict[str, Any] = {}
    if quantisation != "none":
        placement = {
            "quantization_config": _quantisation(quantisation, device),
            "device_map": {"": str(device)},
        }
    try:
        with _no_progress_bar():
            model, report = AutoModel.from_pretrained(
                directory,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **placement,
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"The model in {directory} cannot be loaded: {error}.", remedy="Fetch the model again."
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"The weights in {directory} lack {len(missing)} tensors of the model, such as {missing[0]}.",
            remedy=_SAFETENSORS_REMEDY,
        )
    model = _without_pooler(model)
    return model if placement else model.to(device)


def _quantisation(kind: str, device: torch.device) -> Any:
    if device.type != "cuda":
        raise ModelError(
            f"Quantisation {kind!r} needs a CUDA device, and the device is {device.type!r}.",
            remedy="Use quantisation 'none', or a machine with an NVIDIA GPU.",
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"Quantisation {kind!r} needs the package bitsandbytes, which is not installed.",
            remedy="Install it with `pip install bitsandbytes`.",
        )
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


def _without_dropout(config: Any) -> None:
    for name, value in config.to_dict().items():
        is_rate = isinstance(value, float) and ("drop" in name or name.endswith("pdrop"))
        if is_rate and value != 0:
            setattr(config, name, 0.0)


def _is_causal(config: Any, name: str) -> bool:
    """Decide by the configuration whether a model is causal (see the module's design choices)."""
    if not hasattr(config, "hidden_size"):
        raise ModelError(
            f"The model {name} ({config.model_type}) is not a model of text alone.",
            remedy="Use a causal language model or an encoder that reads nothing but text.",
        )
    if getattr(config, "is_decoder", False):
        return True
    bidirectional = getattr(config, "use_bidirectional_attention", None) in (True, "all")
    if bidirectional or config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return False
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return True
    raise ModelError(
        f"The model {name} ({config.model_type}) is neither a causal language model nor an encoder of text.",
        remedy="Use a model that transformers lists for causal or masked language modelling.",
    )


@torch.no_grad()
def _probe(model: Any, causal: bool, name: str) -> int:
    """The width of the last states; makes sure that a causal model's later tokens change no earlier state."""
    device = model.get_input_embeddings().weight.device
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 9, 10]], device=device)
    states = model(input_ids=ids).last_hidden_state[:, :2].float()
    if causal and not torch.allclose(states[0], states[1], rtol=1e-2, atol=1e-2):
        raise ModelError(
            f"The model {name} counts as causal, but later tokens change its earlier states.",
            remedy="Use another model: P2Rec would compute wrong states with this one.",
        )
    return int(states.shape[-1])


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


__all__ = ["BUILT_IN_NAMES", "LanguageModel", "load_language_model"]
