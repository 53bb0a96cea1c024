"""A linear classifier on fixed features: multinomial logistic regression with an L2 penalty.

N examples, D features, C classes.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_array, issparse
from scipy.special import log_softmax

Features = np.ndarray | csr_array


def fit_and_predict(
    train: Features,
    labels: Sequence[str],
    test: Features,
    *,
    groups: Sequence[str],
    penalties: Sequence[float],
    rng: np.random.Generator,
    held_out_share: float = 0.2,
) -> tuple[list[str], float]:
    """Predicted labels of the test rows, and the penalty used.

    train, test   (N, D) dense or sparse; dense ones are standardised with the training rows' statistics. Of more
                  features than training rows, only what lies in the space of the training rows can matter: the fit
                  takes place there, and is the same
    groups        what each training row belongs to (its recording): the penalty is chosen on whole held-out groups,
                  the classifier then fitted to all rows
    """
    classes, codes_N = np.unique(np.asarray(labels), return_inverse=True)
    train, test = _in_row_space(*_standardised(train, test))
    if len(penalties) == 1 or len(set(groups)) < 2:
        best = penalties[0]
    else:
        names = sorted(set(groups))
        held_out = set(rng.permutation(names)[: max(1, round(held_out_share * len(names)))].tolist())
        is_held_out_N = np.array([group in held_out for group in groups])
        scores = []
        for penalty in penalties:
            weights_EC = _fit(train[~is_held_out_N], codes_N[~is_held_out_N], len(classes), penalty)
            found = _logits(train[is_held_out_N], weights_EC).argmax(1)
            scores.append(float((found == codes_N[is_held_out_N]).mean()))
        best = penalties[int(np.argmax(scores))]
    weights_EC = _fit(train, codes_N, len(classes), best)
    return classes[_logits(test, weights_EC).argmax(1)].tolist(), best


def _standardised(train: Features, test: Features) -> tuple[Features, Features]:
    if issparse(train):
        return train, test
    mean_D, std_D = train.mean(0), train.std(0)
    std_D = np.where(std_D > 1e-8, std_D, 1.0)
    return (train - mean_D) / std_D, (test - mean_D) / std_D


def _in_row_space(train: Features, test: Features) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of both in an orthonormal basis of the training rows, where that has fewer axes than features."""
    if train.shape[1] <= train.shape[0]:
        return tuple(part.toarray() if issparse(part) else part for part in (train, test))
    gram_NN, across_MN = (part @ train.T for part in (train, test))
    gram_NN, across_MN = (part.toarray() if issparse(part) else part for part in (gram_NN, across_MN))
    squares_E, axes_NE = np.linalg.eigh(gram_NN)
    kept = squares_E > squares_E[-1] * 1e-10
    scale_NE = axes_NE[:, kept] / np.sqrt(squares_E[kept])
    return gram_NN @ scale_NE, across_MN @ scale_NE


def _logits(rows: np.ndarray, weights_EC: np.ndarray) -> np.ndarray:
    """E = D + 1: the last line is the offset."""
    return rows @ weights_EC[:-1] + weights_EC[-1]


def _fit(rows: np.ndarray, codes_N: np.ndarray, num_classes: int, penalty: float) -> np.ndarray:
    """Weights (D + 1, C) of the mean cross entropy plus penalty / 2 times the squared weights (offsets are free)."""
    num_rows, num_features = rows.shape
    is_class_NC = np.zeros((num_rows, num_classes))
    is_class_NC[np.arange(num_rows), codes_N] = 1

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights_EC = flat.reshape(num_features + 1, num_classes)
        log_probs_NC = log_softmax(_logits(rows, weights_EC), axis=1)
        loss = -(log_probs_NC * is_class_NC).sum() / num_rows + penalty / 2 * (weights_EC[:-1] ** 2).sum()
        error_NC = (np.exp(log_probs_NC) - is_class_NC) / num_rows
        gradient_EC = np.concatenate([rows.T @ error_NC + penalty * weights_EC[:-1], error_NC.sum(0, keepdims=True)])
        return loss, gradient_EC.reshape(-1)

    start = np.zeros((num_features + 1) * num_classes)
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return found.x.reshape(num_features + 1, num_classes)
