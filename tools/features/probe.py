"""Simple classifiers on frozen embeddings: function(train (N, D), labels (N,), held (M, D)) -> (predicted (M,), how).

`how` is the sentence that says what was chosen. Nothing here is random.
"""

import warnings

import torch
import torch.nn.functional as F
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from data.samplers import stratified_split

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)  # C, the inverse of the L2 penalty
HELD_OUT = 0.2  # of the training images, to choose C on
STEPS = 1000  # at most, of L-BFGS
NEIGHBOURS, TEMPERATURE = 20, 0.07  # arXiv 2104.14294, section 4.1 and its code
ROWS = 1024  # images whose similarities are held in memory together


def linear(train, labels, held):
    """Logistic regression on standardised features, C chosen on a stratified fifth of the training images."""
    kept, apart = (torch.from_numpy(indices) for indices in stratified_split(labels, HELD_OUT, "probe"))
    right, unfinished = [], 0
    for strength in STRENGTHS:
        predicted, ended = fit(train[kept], labels[kept], train[apart], strength)
        right.append(int((predicted == labels[apart]).sum()))
        unfinished += not ended
    best = max(range(len(STRENGTHS)), key=lambda number: (right[number], -number))  # the stronger penalty of equals
    predicted, ended = fit(train, labels, held, STRENGTHS[best])
    unfinished += not ended
    how = f"C {STRENGTHS[best]:g} chosen with {right[best]}/{len(apart)} of them held out"
    return predicted, how + (f"; {unfinished} fits had not converged after {STEPS} steps" if unfinished else "")


def fit(train, labels, held, strength):
    """(predicted classes of `held`, whether the optimiser converged)."""
    model = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=STEPS))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(train.double().numpy(), labels.numpy())
    ended = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return torch.from_numpy(model.predict(held.double().numpy())), ended


def knn(train, labels, held):
    """Weighted vote of the nearest training images by cosine similarity."""
    neighbours = min(NEIGHBOURS, len(labels))
    reference = F.normalize(train, dim=1).T
    predicted = []
    for rows in F.normalize(held, dim=1).split(ROWS):
        similarities, nearest = (rows @ reference).topk(neighbours, dim=1)
        votes = torch.zeros(len(rows), int(labels.max()) + 1, dtype=torch.float64)
        votes.scatter_add_(1, labels[nearest], (similarities.double() / TEMPERATURE).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted), f"{neighbours} neighbours, temperature {TEMPERATURE}"


PROBES = {"linear": linear, "knn": knn}
