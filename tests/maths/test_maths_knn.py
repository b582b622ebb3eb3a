import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from engine.maths import knn as module
from engine.maths.knn import knn, search
from golden import load


def problem(n=300, q=40, dim=6, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    bank, queries = torch.randn(n, dim, generator=g), torch.randn(q, dim, generator=g)
    return bank, torch.randint(classes, (n,), generator=g), queries


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_accuracy_agrees_with_the_authors_for_every_k_and_temperature(backend):
    g = load("sela/knn.npz")
    ks, sigmas = [int(k) for k in g.given("K")], [float(s) for s in g.given("sigma")]
    truth = torch.from_numpy(g.given("test_labels"))
    bank, labels, queries = (g.given(n) for n in ("train_features", "train_labels", "test_features"))
    votes = knn(bank, labels, queries, ks=ks, temperatures=sigmas, backend=backend)
    top1 = [[float((votes[k, s].argmax(1) == truth).double().mean()) for s in sigmas] for k in ks]
    g.agree("top1", top1)


def test_equals_scikit_learn():
    bank, labels, queries = problem()
    unit = [F.normalize(x, dim=1).numpy() for x in (bank, queries)]
    votes = knn(bank, labels, queries, ks=(1, 7), temperatures=(None, 0.2))
    for k in (1, 7):
        for t in (None, 0.2):
            weights = "uniform" if t is None else (lambda d, t=t: np.exp((1 - d**2 / 2) / t))
            theirs = KNeighborsClassifier(k, weights=weights).fit(unit[0], labels).predict_proba(unit[1])
            ours = votes[k, t]
            assert np.allclose(ours / ours.sum(1, keepdim=True), theirs, atol=1e-5)


def test_blocks_do_not_matter(monkeypatch):
    bank, _, queries = problem()
    whole = search(bank, queries, 20)
    monkeypatch.setattr(module, "BLOCK_BANK", 7)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 9)
    blocked = search([bank[:11].numpy(), bank[11:]], queries, 20)
    assert torch.equal(whole[1], blocked[1]) and torch.allclose(whole[0], blocked[0], atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_a_query_does_not_vote_for_itself_when_the_bank_is_asked(backend):
    bank, _, _ = problem(n=50)
    bank[10:16] = bank[9]  # seven equal rows, of which a search for three can miss the asking one
    similarity, index = search(bank, bank, 3, exclude_self=True, backend=backend)
    assert (index != torch.arange(50)[:, None]).all() and similarity.shape == (50, 3)
    assert torch.allclose(similarity[9:16], torch.ones(7, 3))
    everyone = F.normalize(bank, dim=1) @ F.normalize(bank, dim=1).T
    everyone.fill_diagonal_(-2)
    assert torch.allclose(similarity, everyone.topk(3).values, atol=1e-6)


def test_a_class_that_the_queries_never_see_keeps_its_place():
    votes = knn(torch.eye(3), [0, 4, 2], torch.eye(3), ks=(1,), classes=6)
    assert votes[1, 0.1].shape == (3, 6) and votes[1, 0.1].argmax(1).tolist() == [0, 4, 2]


@pytest.mark.parametrize(
    "wrong, word",
    [
        ({"ks": (301,)}, "k = 301"),
        ({"temperatures": (0.0,)}, "temperature"),
        ({"classes": 2}, "0..1"),
        ({"queries": torch.zeros(3, 5)}, "5"),
        ({"exclude_self": True}, "exclude_self"),
    ],
)
def test_a_wrong_argument_is_named(wrong, word):
    bank, labels, queries = problem()
    with pytest.raises(ValueError, match=word):
        knn(bank, labels, **{"queries": queries, **wrong})
