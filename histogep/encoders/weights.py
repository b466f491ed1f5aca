"""Read the weights of an encoder strictly: every tensor of the network comes from the file (torch).

A tensor that stays as it was initialised gives features that look like any others and differ from
run to run, so a file is loaded only if every tensor fits. The one exception is the classifier of a
file that has one: the networks here have none.
"""

from __future__ import annotations

import logging
import pickle
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from histogep.errors import InputError
from histogep.files import given_file

log = logging.getLogger(__name__)

State = dict[str, torch.Tensor]

#: Under what training scripts keep the weights beside optimiser and epoch.
_CONTAINERS = ("state_dict", "model", "model_state_dict")
#: What wrappers put before the name of every tensor (data-parallel, Lightning, self-supervision).
_PREFIXES = {"module", "backbone", "model", "encoder", "network"}
#: What timm's networks call their classifiers.
_CLASSIFIERS = {"head", "head_dist", "aux_head", "fc", "classifier"}
#: Names of tensors in a message.
_N_NAMED = 5


def read_weights(path: Path) -> State:
    """Return the tensors of a file by name; pickled code is never run.

    Prefixes that wrappers put before all names (`module.`, `backbone.`, ...) are taken off.

    Raises
    ------
    InputError
        The file is damaged, or holds anything but plain tensors.
    """
    with given_file(path, "weights"):
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            if zipfile.is_zipfile(path):
                _refuse_compressed(path)
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
            except pickle.UnpicklingError as error:
                raise InputError(
                    f"{path}: damaged, or holds more than tensors (pickled code is never run): save "
                    "the network's state_dict() with torch.save or safetensors"
                ) from error
        for name in _CONTAINERS:
            if isinstance(state, Mapping) and isinstance(state.get(name), Mapping):
                state = state[name]
        if not isinstance(state, Mapping) or not state:
            raise InputError(f"{path}: it should hold the tensors of a network by name")
        size = path.stat().st_size
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                raise InputError(
                    f"{path}: {str(key)[:80]} should be a plain tensor and is a "
                    f"{type(value).__name__}: save the network's state_dict() only"
                )
            stored = value.untyped_storage().nbytes()
            if value.numel() * value.element_size() > stored or stored > size:
                raise InputError(f"{path}: {str(key)[:80]} declares more bytes than the file has")
        return _without_prefixes({str(key): value for key, value in state.items()}, path)


def load_strictly(
    create: Callable[[], nn.Module],
    state: State,
    path: Path,
    *,
    encoder: str,
    source: str,
    remap: Callable[[State, nn.Module], State] | None = None,
) -> nn.Module:
    """Return a network with all its tensors from a file.

    Parameters
    ----------
    create
        Makes the network. It is called on the meta device first, so that what is asked of memory
        is known to be in the file.
    state
        Of `read_weights`.
    path
        The file, for messages.
    encoder, source
        Name of the encoder, and where its weights are to be had.
    remap
        Turns the names of the file into those of the network; where there is none, and names do
        not fit, timm's own for this architecture is tried.

    Raises
    ------
    InputError
        A tensor is missing, left over, of another shape or kind, or not finite.
    """
    with torch.device("meta"):
        outline = create()
    wanted = outline.state_dict()
    try:
        if remap is not None:
            state = remap(state, outline)
        elif set(wanted) != set(state):
            state = _renamed_by_timm(state, outline)
        state = _fitting(state, wanted, classifiers=_classifiers(outline))
    except (ValueError, RuntimeError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"encoder {encoder}: {path} does not hold its weights ({str(error)[:500]}); "
            f"fetch them from {source}"
        ) from error
    network = create()
    network.load_state_dict(state, strict=True)
    return network


def _refuse_compressed(path: Path) -> None:
    """Refuse what torch.save never writes: a compressed archive may unpack to any size."""
    with zipfile.ZipFile(path) as archive:
        packed = [i for i in archive.infolist() if i.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise InputError(
            f"{path}: {packed[0].filename[:80]} is compressed, which torch.save is not"
        )


def _without_prefixes(state: State, path: Path) -> State:
    """Take off what stands before every name but those of a classifier, as long as it is a wrapper."""
    while True:
        roots = {key.partition(".")[0] for key in state} - _CLASSIFIERS
        if len(roots) != 1 or not roots <= _PREFIXES:
            return state
        prefix = f"{roots.pop()}."
        bare = {key.removeprefix(prefix): value for key, value in state.items()}
        if len(bare) < len(state):
            raise InputError(f"{path}: names repeat once the prefix {prefix} is taken off")
        if bare.keys() == state.keys():  # a tensor is called "model", without a dot
            return state
        state = bare


def _classifiers(network: nn.Module) -> tuple[str, ...]:
    """Return what the names of the classifier's tensors begin with."""
    named = (getattr(network, "pretrained_cfg", None) or {}).get("classifier") or ()
    names = [named] if isinstance(named, str) else named
    return tuple(f"{name}." for name in names if str(name).partition(".")[0] in _CLASSIFIERS)


def _renamed_by_timm(state: State, network: nn.Module) -> State:
    """Rename tensors as timm does for files of older versions of an architecture.

    What timm would interpolate to another shape is left as it is, and so refused: it would be
    another network than the file's.
    """
    rename = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if rename is None:
        return state
    try:
        renamed = rename(dict(state), network)
    except Exception as error:
        log.info("timm cannot rename the tensors: %s", str(error)[:200])
        return state
    before, after = (Counter(tuple(v.shape) for v in s.values()) for s in (state, renamed))
    return state if after - before else renamed


def _fitting(
    state: State, wanted: Mapping[str, torch.Tensor], *, classifiers: tuple[str, ...]
) -> State:
    """Return the tensors of a network in float32 where it has floats.

    Raises
    ------
    ValueError
        They are not all there, or not such as the network has.
    """
    # Files of PyTorch before 0.4.1 lack the counters of batch normalisation, which only training reads.
    counters = [k for k in wanted.keys() - state.keys() if k.endswith(".num_batches_tracked")]
    state = {**state, **{key: torch.zeros((), dtype=torch.int64) for key in counters}}
    missing = wanted.keys() - state.keys()
    if missing:
        raise ValueError(f"no {_some(missing)}")
    found, left = {}, [key for key in state if key not in wanted]
    foreign = [key for key in left if not (classifiers and key.startswith(classifiers))]
    if foreign:
        raise ValueError(f"{_some(foreign)} belong to another network")
    if left:
        log.info("the classifier of the weights is not used: %s", _some(left))
    for key, like in wanted.items():
        value = state[key]
        if value.shape != like.shape:
            raise ValueError(f"{key} has shape {tuple(value.shape)}, not {tuple(like.shape)}")
        if like.is_floating_point():
            if not value.is_floating_point():
                raise ValueError(f"{key} holds {value.dtype}, not floating point numbers")
            value = value.to(torch.float32)
            if not torch.isfinite(value).all():
                raise ValueError(f"{key} holds numbers that are not finite")
        elif value.is_complex() or value.is_floating_point():
            raise ValueError(f"{key} holds {value.dtype}, not {like.dtype}")
        found[key] = value
    return found


def _some(keys: Collection[str]) -> str:
    shown = ", ".join(key[:80] for key in sorted(keys)[:_N_NAMED])
    return shown if len(keys) <= _N_NAMED else f"{shown} and {len(keys) - _N_NAMED} more"
