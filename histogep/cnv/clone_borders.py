"""Which clone each malignant spot belongs to, once the clones are known: where their borders run.

Clones are found on smoothed profiles (`histogep.cnv.clones`): smoothing finds them where spots are
shallow, and blurs their borders. Here every spot is asked itself, with no more weight on its
neighbours than the section shows them to have.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from scipy import sparse
from scipy.special import log_softmax, softmax

log = logging.getLogger(__name__)

#: Couplings of neighbours that are tried: at 2, six neighbours of one clone outweigh a likelihood
#: ratio of e to the 12.
_COUPLINGS = np.linspace(0, 2, 21)


@dataclass(frozen=True)
class Borders:
    """Clones of spots.

    Attributes
    ----------
    partition
        Clone of each spot.
    probability
        Posterior of that clone.
    coupling
        Weight of a neighbour in the log probability of a clone.
    """

    partition: np.ndarray
    probability: np.ndarray
    coupling: float


def settle_borders(
    values: np.ndarray,
    partition: np.ndarray,
    *,
    neighbours: sparse.spmatrix | None = None,
    min_spots: int = 1,
    rounds: int = 30,
) -> Borders:
    """Return the clone of each spot by its own profile and those of its neighbours.

    A spot is taken for a share of tumour times the profile of one clone, plus noise; the share is
    the spot's own, by least squares. So a spot half full of lymphocytes is not taken for another
    clone, and a spot on a border goes to the clone that has most of it. The noise is what the
    spots leave along the differences of the clones; a Potts model over the lattice (its coupling
    by pseudo-likelihood: Besag, 1975) says how often neighbours share a clone. Profiles, shares,
    noise, coupling and the posterior are solved in turn (mean field).

    Parameters
    ----------
    values
        Profiles of the malignant spots against the reference, not smoothed (spots by bins, in
        standard deviations of the reference).
    partition
        Clones to start from, 0 to k - 1.
    neighbours
        Adjacency of these spots; each stands for itself without it.
    min_spots
        Where a clone would be left with fewer spots, the start is returned.
    rounds
        Most rounds.
    """
    values = np.asarray(values, np.float64)
    n, k = len(values), int(partition.max()) + 1
    posterior = np.eye(k)[partition]
    start = Borders(partition=partition, probability=np.ones(n), coupling=0.0)
    if k < 2:
        return start
    share = np.ones((n, k))
    coupling, around = 0.0, np.zeros((n, k))
    for _ in range(rounds):
        profiles = _clone_profiles(values, posterior, share)
        power = np.maximum((profiles**2).sum(axis=1), 1e-12)
        share = np.maximum(values @ profiles.T / power, 0)
        # |x - s m|^2 = |x|^2 - 2 s (x m) + s^2 |m|^2, of which the first is the same for all clones.
        misfit = share**2 * power / 2 - share * (values @ profiles.T)
        noise = _noise(values, profiles, share, posterior.argmax(axis=1))
        if neighbours is not None:
            around = np.asarray(neighbours @ posterior)
            coupling = _coupling(around, posterior)
        updated = softmax(coupling * around - misfit / noise, axis=1)
        change = np.abs(updated - posterior).max()
        posterior = updated
        if change < 1e-3:
            break
    settled = posterior.argmax(axis=1)
    if np.bincount(settled, minlength=k).min() < min_spots:
        log.info("a clone would be left with fewer than %d spots: its border stays", min_spots)
        return start
    log.info("%d of %d spots changed their clone", (settled != partition).sum(), n)
    return Borders(partition=settled, probability=posterior.max(axis=1), coupling=coupling)


def _clone_profiles(values: np.ndarray, posterior: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Return the profile of each clone at full share, by least squares."""
    weight = posterior * share
    power = np.maximum((weight * share).sum(axis=0), 1e-12)
    return weight.T @ values / power[:, np.newaxis]


def _noise(
    values: np.ndarray, profiles: np.ndarray, share: np.ndarray, partition: np.ndarray
) -> float:
    """Return the mean variance of what spots leave along the differences between clones."""
    own = np.take_along_axis(share, partition[:, np.newaxis], axis=1) * profiles[partition]
    left = values - own
    found = []
    for first in range(len(profiles)):
        for second in range(first):
            direction = profiles[first] - profiles[second]
            length = np.linalg.norm(direction)
            concerned = np.isin(partition, (first, second))
            if length > 0 and concerned.any():
                found.append(np.mean((left[concerned] @ direction / length) ** 2))
    return max(float(np.mean(found)) if found else 1.0, 1e-9)


def _coupling(around: np.ndarray, posterior: np.ndarray) -> float:
    """Return the coupling under which each spot's neighbours foretell its clone best."""
    fits = [float((log_softmax(c * around, axis=1) * posterior).sum()) for c in _COUPLINGS]
    return float(_COUPLINGS[int(np.argmax(fits))])
