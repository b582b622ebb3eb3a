from fractions import Fraction

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


def by_definition(bank, queries, k):
    """The k nearest rows of each query from exact integers: by falling cosine, equal ones by their place in the bank."""
    places = []
    for q in queries.tolist():
        square = [(sum(a * b for a, b in zip(row, q, strict=True)), sum(a * a for a in row)) for row in bank.tolist()]
        cosine = [Fraction(dot * abs(dot), norm) if norm else Fraction(0) for dot, norm in square]
        places.append(sorted(range(len(bank)), key=lambda i: (-cosine[i], i))[:k])
    return torch.tensor(places)


@pytest.mark.parametrize("form", ["whole", "blocked", "sharded", "faiss", "faiss blocked"])
@pytest.mark.parametrize("data", ["many equal", "all equal", "zeros among them"])
def test_equal_similarities_come_in_the_order_of_the_bank(form, data, monkeypatch):
    g = torch.Generator().manual_seed(3)
    bank, queries = torch.randint(-1, 2, (210, 37), generator=g), torch.randint(-1, 2, (23, 37), generator=g)
    rows = torch.randint(12, (210,), generator=g)  # twelve different rows, each met about 17 times
    bank = bank[torch.zeros_like(rows) if data == "all equal" else rows]
    if data == "zeros among them":
        bank[::5] = 0
    bank = bank * torch.randint(1, 6, (210, 1), generator=g)  # other lengths, the same directions
    if "blocked" in form:
        monkeypatch.setattr(module, "BLOCK_BANK", 13)
        monkeypatch.setattr(module, "BLOCK_QUERIES", 9)
    given = [bank[:50].float().numpy(), bank[50:].float()] if form == "sharded" else bank.float() * 0.37
    wanted = by_definition(bank, queries, 40)
    for k in (1, 5, 40):
        similarity, index = search(given, queries.float(), k, backend=form.split()[0] if "faiss" in form else "torch")
        assert torch.equal(index, wanted[:, :k]), k
        assert (similarity.diff(dim=1) <= 0).all()
    own = search(given, given, 6, exclude_self=True)[1]
    whole = by_definition(bank, bank, 210)
    assert own.tolist() == [[j for j in row if j != i][:6] for i, row in enumerate(whole.tolist())]


@pytest.mark.parametrize("backend", ["torch", "faiss"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["bank", "queries"])
def test_a_row_that_is_not_finite_is_named(backend, value, where, monkeypatch):
    monkeypatch.setattr(module, "BLOCK_BANK", 64)
    rows = dict(zip(("bank", "queries"), problem()[::2], strict=True))
    rows[where][37, 2] = value
    with pytest.raises(ValueError, match=f"knn: row 37 of the {where} is not finite"):
        search(rows["bank"], rows["queries"], 5, backend=backend)


@pytest.mark.parametrize("scale", [1e-30, 1e25])
def test_the_length_of_a_row_does_not_matter(scale):
    bank, _, queries = problem()
    plain, scaled = search(bank, queries, 20), search(bank * scale, queries * scale, 20)
    assert torch.equal(plain[1], scaled[1]) and torch.allclose(plain[0], scaled[0], atol=1e-6)


def test_blocks_do_not_matter(monkeypatch):
    bank, _, queries = problem()
    whole = search(bank, queries, 20)
    monkeypatch.setattr(module, "BLOCK_BANK", 7)
    monkeypatch.setattr(module, "BLOCK_QUERIES", 9)
    blocked = search([bank[:11].numpy(), bank[11:]], queries, 20)
    assert torch.equal(whole[1], blocked[1]) and torch.equal(whole[0], blocked[0])
    for a, b in zip(whole, search(bank, queries, 20, backend="faiss"), strict=True):
        assert torch.equal(a, b)


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
