"""The contract that a method passes because it is registered: nothing here names one, except where a rule cannot hold."""

import io
import math

import contract_tools as tools
import numpy as np
import pytest
import torch

import zoo
from engine import loop
from reproduce import methods
from zoo import registry
from zoo.settings import parse
from zoo.yamlfile import load_mapping

REGISTERED, TRAINED, CASES = tools.registered(), tools.trained(), tools.cases()
# The order of the batch is part of these methods' mathematics.
ORDER_MATTERS = {
    "unmix": "image i is mixed with image B-1-i",
    "deepercluster": "each part of a batch belongs to one super-class",
}


def on(names):
    return pytest.mark.parametrize("name", names)


# -- registry and constructor --------------------------------------------------------------------------------------------
@on(registry.methods())
def test_yaml_and_constructor_name_the_same_parameters_with_the_same_defaults(name):
    written = load_mapping(registry.registry().file(name))["recipe"]["params"]
    assert written == methods.parameters(methods.find(name))


@on(registry.methods())
def test_every_registered_method_has_a_digits_model(name):
    assert f"{name}_digits" in zoo.models(method=name)


@on(REGISTERED)
def test_a_misspelled_parameter_is_one_clear_error(name):
    for wrong in ("temperatur", "no_such_thing"):
        with pytest.raises(Exception, match=wrong) as caught:
            zoo.resolve(f"{name}_digits", {f"params.{wrong}": 1})
        assert getattr(type(caught.value), "user_error", False)
        plain = tools.recipe(name).dump()
        plain["params"] = {**plain["params"], wrong: 1}
        with pytest.raises(Exception, match=f"{name} has no parameter '{wrong}'"):
            methods.build(plain, torch.nn.Identity(), instances=9, classes=3)


@on(REGISTERED)
def test_every_remedy_that_an_alarm_names_is_a_setting(name):
    for words in methods.find(name).remedies.values():
        for word in words:
            zoo.resolve(f"{name}_digits", parse([word]))


@on(REGISTERED)
def test_deviations_are_complete_sentences_with_unique_ids_and_real_options(name):
    found = methods.find(name).deviations
    assert len({d.id for d in found}) == len(found)
    for d in found:
        assert d.paper and d.release and d.ours
        if d.option:
            zoo.resolve(f"{name}_digits", parse([d.option]))


# -- one step ------------------------------------------------------------------------------------------------------------
@on(TRAINED)
def test_one_step_gives_a_finite_loss_and_gradients_on_what_is_trained_and_nowhere_else(name):
    method, batch, ctx = tools.first(name)
    loss = tools.loss_of(method, batch, 0, ctx)
    assert loss.ndim == 0 and loss.isfinite()
    loss.backward()
    optimised = {id(p) for group in method.param_groups() for p in group["params"]}
    for key, p in method.named_parameters():
        if id(p) not in optimised:
            assert p.grad is None or p.grad.abs().sum() == 0, f"{key} is not optimised and has a gradient"
        elif not method.needs.unused_parameters:
            assert p.grad is not None, f"{key} is optimised and has no gradient"
            assert p.grad.isfinite().all(), key
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in method.backbone.parameters())
    method.after_backward(0)


@on(TRAINED)
def test_numbers_for_the_log_are_finite(name):
    method, batch, ctx = tools.first(name)
    method.before_step(0, ctx)
    _, logs = method.loss(batch, 0)
    for key, value in {**logs, **method.health()}.items():
        assert math.isfinite(float(value)), key
    assert method.alarms(10, 1.0, {}) == [] and repr(method)


@on(TRAINED)
@pytest.mark.parametrize("size", [3, 7])
def test_a_batch_of_odd_size_works(name, size):
    method, batch, ctx = tools.first(name)
    loss = tools.loss_of(method, tools.select(batch, slice(0, size)), 0, ctx)
    loss.backward()
    assert loss.isfinite()


@on(TRAINED)
def test_the_loss_under_bfloat16_is_close_to_float32(name):
    losses = []
    for enabled in (False, True):
        method, batch, ctx = tools.first(name)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            loss = tools.loss_of(method, batch, 0, ctx)
        loss.backward()
        losses.append(loss.item())
    assert math.isfinite(losses[1]) and losses[1] == pytest.approx(losses[0], rel=0.1, abs=0.02)


@on(sorted(set(TRAINED) - set(ORDER_MATTERS)))
def test_the_order_of_a_batch_does_not_matter(name):
    rows = torch.from_numpy(np.random.default_rng(0).permutation(tools.BATCH))
    losses = []
    for order in (slice(None), rows):
        method, batch, ctx = tools.first(name, **tools.WHOLE_BATCH.get(name, {}))
        losses.append(tools.loss_of(method, tools.select(batch, order), 0, ctx).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-4, abs=1e-7)


# -- batches -------------------------------------------------------------------------------------------------------------
@on(CASES)
def test_no_two_draws_of_an_epoch_show_the_same_view(name):
    """An image that the sampler draws again is cropped afresh, as the authors' loaders do."""
    settings = tools.recipe(name, **{"views.noise": 0.0})
    method = tools.build(settings)
    batches = tools.stream(settings, method)
    tools.begin(method, batches)
    shown = [
        (int(i), view.numpy().tobytes())
        for batch in batches.epoch(0)
        for i, view in zip(batch.index, batch.views[0], strict=True)
    ]
    assert len(set(shown)) == len(shown) == batches.steps_per_epoch * tools.BATCH
    if method.sampler(tools.IMAGES, 0, batches.context(method, 0)) is not None:
        assert len({i for i, _ in shown}) < len(shown)  # it does draw images again


# -- memory --------------------------------------------------------------------------------------------------------------
@on(CASES)
def test_state_survives_a_round_trip_through_a_file(name):
    """Two steps, then everything through a weights-only file into a fresh method: the third step is the same."""
    settings = tools.recipe(name)
    method = tools.build(settings)
    batches = tools.stream(settings, method)
    ctx = tools.begin(method, batches)
    steps = list(batches.epoch(0))
    optimizer = torch.optim.SGD([p for g in method.param_groups() for p in g["params"]], lr=0.1)
    for step in (0, 1):
        tools.loss_of(method, steps[step], step, ctx).backward()
        method.after_backward(step)
        optimizer.step()
        optimizer.zero_grad()
    file = io.BytesIO()
    torch.save({"model": method.state_dict(), "extra": method.extra_state()}, file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    other = tools.build(settings)
    other.load_extra_state(state["extra"])
    other.load_state_dict(state["model"])
    a, b = (tools.loss_of(m, steps[2], 2, batches.context(m)) for m in (method, other))
    assert torch.equal(a, b)


@on(sorted({*REGISTERED, *CASES}))
def test_a_run_that_is_stopped_twice_ends_with_the_bits_of_an_undisturbed_one(name, tmp_path):
    settings = tools.recipe(name)
    whole = tools.fit(settings, tmp_path / "whole")
    assert whole.finished
    if name in CASES:
        for stop in (4, 7):  # within the first epoch, and within the second
            assert not tools.fit(settings, tmp_path / "parts", stop_after=stop).finished
    result = tools.fit(settings, tmp_path / "parts")
    assert result.finished and result.resumed_from == (7 if name in CASES else None)
    a, b = tools.weights(tmp_path / "whole"), tools.weights(tmp_path / "parts")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert isinstance(whole, loop.FitResult) and result.loss == whole.loss


@on(REGISTERED)
def test_what_is_exported_loads_back_through_the_registrys_own_layouts(name, tmp_path):
    settings = tools.recipe(name, **{"schedule.images": 0} if name in TRAINED else {})
    tools.fit(settings, tmp_path / "run")
    loaded, fresh = zoo.load(tmp_path / "run"), tools.build(settings).backbone
    assert loaded.state_dict().keys() == fresh.state_dict().keys()
    for key, value in fresh.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
