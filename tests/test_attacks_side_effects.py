"""Attacks of the package pyautoattack change nothing outside, nor does anything outside change them."""

import sys
import threading

import pytest
import torch
from attacks_case import Linear, dynamic_models, make_problem

from pursamere.attacks import apgd, autoattack, square
from pursamere.attacks._pyautoattack import package


@pytest.fixture
def problem():
    return make_problem()


@pytest.mark.slow
@pytest.mark.parametrize("attack", [apgd, autoattack, square])
def test_inference_mode_does_not_matter(problem, attack):
    model, images, labels = problem
    options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
    want = attack(model, images[:6], labels[:6], eps=0.02, **options)
    with torch.inference_mode():
        got = attack(model, images[:6] * 1, labels[:6] * 1, eps=0.02, **options)
    assert torch.equal(got, want)


@pytest.mark.slow
@pytest.mark.parametrize("attack", [apgd, autoattack, square])
@pytest.mark.parametrize("closure", [False, True])
def test_the_caller_is_undisturbed(problem, attack, closure):
    network, images, labels = problem
    model = (lambda x: network(x)) if closure else network
    for parameter in network.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    before, traced = torch.get_rng_state(), []
    seeds = list(torch.cuda._lazy_seed_tracker.get_calls())  # what CUDA will be seeded with when it is initialized

    def trace(frame, event, argument):
        traced.append(event)

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        options = {"queries": 5} if attack in (autoattack, square) else {"steps": 3}
        found = attack(model, images[:6], labels[:6], eps=0.02, **options)
        assert sys.gettrace() is trace
    finally:
        sys.settrace(previous)
    assert not found.requires_grad
    assert torch.equal(torch.get_rng_state(), before)
    assert seeds == list(torch.cuda._lazy_seed_tracker.get_calls())
    assert all(bool((parameter.grad == 7).all()) for parameter in network.parameters())
    assert torch.is_grad_enabled()
    again = attack(model, images[:6], labels[:6], eps=0.02, **options)
    assert torch.equal(found, again)


def flags_of(model, images, labels):
    said: list[str] = []
    wrong = (labels + 1) % 5  # the package checks the model, and then has nothing to attack
    autoattack(model, images, wrong, eps=1e-4, queries=2, on_warning=said.append)
    return ["dynamic" in text for text in said]


@pytest.mark.slow
def test_a_model_is_called_dynamic_by_itself_alone(problem):
    """Whatever was attacked before, failed, or is attacked meanwhile in another thread."""
    plain, loop = dynamic_models()
    images, labels = problem[1][:2], problem[2][:2]
    counted = package("checks").funcs
    counted["grad"] = 3  # by someone else
    try:
        for _ in range(2):
            assert flags_of(plain, images, labels) == []
            assert flags_of(loop, images, labels) == [True]

        def broken(x):
            loop(x)
            if sys.gettrace() is package("checks").tracefunc:
                raise KeyError
            return plain(x)

        previous = sys.gettrace()
        with pytest.raises(KeyError):
            autoattack(broken, images, labels, eps=1e-4, queries=2)
        assert sys.gettrace() is previous
        assert flags_of(plain, images, labels) == []
        assert counted == {"grad": 3, "backward": 0, "_make_grads": 0}
    finally:
        counted["grad"] = 0


@pytest.mark.slow
def test_attacks_in_other_threads_make_no_difference(problem):
    """The package seeds and draws from generators, and counts in a dictionary, of which the process has one each."""
    _, images, labels = problem
    images, labels = images[:6], labels[:6]
    plain, loop = dynamic_models()
    alone = square(plain, images, labels, eps=0.02, queries=20)
    threads: list[threading.Thread] = []

    def disturbed(meanwhile, when):
        """The plain network, beside one call of which another thread attacks."""

        def model(x):
            if not threads and when():
                threads.append(threading.Thread(target=meanwhile))
                threads[0].start()
                threads[0].join(timeout=1)  # it ends if it is let in, and waits for this attack if not
            return plain(x)

        return model

    calls = iter(range(1000))
    other = disturbed(lambda: square(Linear(), images, labels, eps=0.02, seed=1), lambda: next(calls) == 5)
    assert torch.equal(square(other, images, labels, eps=0.02, queries=20), alone)
    threads.pop().join()
    traced = disturbed(lambda: flags_of(loop, images, labels), lambda: sys.gettrace() is tracefunc)
    tracefunc = package("checks").tracefunc
    assert flags_of(traced, images, labels) == []
    threads.pop().join()
