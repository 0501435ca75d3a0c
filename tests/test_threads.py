"""Purifiers in several threads: the same bits, and no setting of the process changed."""

import threading

import pytest
import torch
from cases import tensor
from nets import AttentionDenoiser, conv_denoiser, fixed_weights

import pursamere as ps
from pursamere._attention import DifferentiableAttention
from pursamere._threads import cpu_threads
from pursamere.determinism import NoRandomNumbers, repeatable_algorithms
from pursamere.training.initial import seeded

NOISE = ps.GaussianNoise(seed=2, draws=4)


def settings():
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    attention = (cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.math_sdp_enabled())
    return (*attention, cudnn.benchmark, cudnn.deterministic, torch.is_grad_enabled(), torch.get_num_threads())


def in_threads(count, work):
    """What ``work(i)`` returns in threads that start together."""
    barrier, results, errors = threading.Barrier(count), [None] * count, []

    def run(number):
        barrier.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return results


def value_and_gradient(model, x):
    leaf = x.clone().requires_grad_()
    value = model(leaf)
    return value.detach(), *torch.autograd.grad(value.square().sum(), leaf)


@pytest.mark.slow
def test_four_threads_through_a_network_with_attention():
    x = tensor(0, 3, 1, 6, 6, dtype=torch.float32)
    denoiser = fixed_weights(AttentionDenoiser())

    def make():
        return ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=3, noise=NOISE)

    before, want = settings(), value_and_gradient(make(), x)
    shared = make()

    def work(number):
        model = shared if number % 2 else make()
        return [value_and_gradient(model, x) for _ in range(6)]

    for results in in_threads(4, work):
        for value, gradient in results:
            assert torch.equal(value, want[0])
            assert torch.equal(gradient, want[1])
    assert settings() == before


@pytest.mark.slow
def test_a_plain_network_beside_a_purification_keeps_its_bits():
    """Fused attention rounds otherwise, so a setting that leaked into the other thread would show."""
    x = tensor(0, 2, 1, 12, 12, dtype=torch.float32)
    other = fixed_weights(AttentionDenoiser(), 3)
    with torch.no_grad():
        want = other(x, 0.3)
    with torch.no_grad(), DifferentiableAttention():
        assert not torch.equal(other(x, 0.3), want)
    model = ps.Purifier(fixed_weights(AttentionDenoiser()), sigma=0.3, radius=0.2, steps=3, noise=NOISE)
    purified = threading.Event()

    def work(number):
        if number == 0:
            try:
                return len(value_and_gradient(model, x)) == 2
            finally:
                purified.set()
        equal = True
        while not purified.is_set():
            with torch.no_grad():
                equal &= torch.equal(other(x, 0.3), want)
        return equal

    assert all(in_threads(3, work))


def test_attention_with_weights_and_masks_is_that_of_pytorch():
    x = tensor(0, 2, 5, 8, dtype=torch.float32, low=-1)
    attention = fixed_weights(torch.nn.MultiheadAttention(8, 2, batch_first=True))
    encoder = fixed_weights(torch.nn.TransformerEncoderLayer(8, 2, batch_first=True))
    mask = torch.tensor([[False] * 4 + [True]]).expand(2, 5)
    for run in (
        lambda: attention(x, x, x, need_weights=False)[0],
        lambda: attention(x, x, x)[0],
        lambda: attention(x, x, x)[1],
        lambda: attention(x, x, x, key_padding_mask=mask, need_weights=False)[0],
        lambda: encoder(x.clone().requires_grad_()),
    ):
        want = run()
        with DifferentiableAttention():
            torch.testing.assert_close(run(), want)
    with DifferentiableAttention():
        assert attention(x, x, x, need_weights=False)[1] is None
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(encoder(leaf).square().sum(), leaf, create_graph=True)
        assert torch.autograd.grad(first.square().sum(), leaf)[0].isfinite().all()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"is_causal": True}, {"scale": 0.3}, {"attn_mask": "bool"}, {"attn_mask": 0.5}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_unfused_attention_has_the_bits_of_pytorchs(dtype, options, autocast):
    query, key, value = (tensor(i, 2, 4, n, 8, low=-1).to(dtype) for i, n in enumerate((9, 7, 7)))
    if options.get("attn_mask") == "bool":
        options = {"attn_mask": torch.arange(63).view(9, 7) % 3 != 0}
    elif "attn_mask" in options:
        options = {"attn_mask": options["attn_mask"] * tensor(5, 9, 7, low=-1).to(dtype)}
    attend = torch.nn.functional.scaled_dot_product_attention
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            want = attend(query, key, value, **options)
        with DifferentiableAttention():
            got = attend(query, key, value, **options)
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


def test_cudnns_settings_are_those_of_before_when_the_last_thread_leaves():
    before = settings()
    inside, overlapping = threading.Barrier(4), []

    def work(number):
        with repeatable_algorithms(torch.device("cuda")):
            inside.wait()
            overlapping.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
            if number < 2:
                inside.wait()  # leaves only after the other two have
        if number >= 2:
            overlapping.append((torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic))
            inside.wait()

    in_threads(4, work)
    assert overlapping == [(False, True)] * 6
    assert settings() == before


def test_cudnn_settings_that_somebody_else_made_meanwhile_stay():
    cudnn, before = torch.backends.cudnn, settings()
    try:
        with repeatable_algorithms(torch.device("cuda")):
            cudnn.benchmark = True
        assert (cudnn.benchmark, cudnn.deterministic) == (True, True)
    finally:
        cudnn.benchmark, cudnn.deterministic = before[3:5]


def test_another_thread_may_draw_random_numbers():
    model = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2, noise=NOISE)
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    want, stop = model(x), threading.Event()

    def work(number):
        if number:
            while not stop.is_set():
                torch.rand(3)
            return True
        try:
            fresh = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2, noise=NOISE)
            return all(torch.equal(model(x), want) and torch.equal(fresh(x), want) for _ in range(20))
        finally:
            stop.set()

    assert all(in_threads(2, work))


def test_the_global_random_state_is_not_even_read(monkeypatch):
    def read(*_):
        raise AssertionError("the global random state was read")

    model = ps.PurifiedClassifier(
        ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=2, noise=NOISE), lambda x: x.flatten(1)
    )
    for module, name in ((torch, "get_rng_state"), (torch.random, "get_rng_state"), (torch, "initial_seed")):
        monkeypatch.setattr(module, name, read)
    model(tensor(0, 2, 1, 6, 6, dtype=torch.float32).requires_grad_()).sum().backward()


def test_a_compiled_denoiser_is_not_kept_from_being_compiled():
    """Dispatch modes make torch.compile leave a network as it is, for good."""
    runs = []

    def backend(graph, inputs):
        def run(*arguments):
            runs.append(1)
            return graph.forward(*arguments)

        return run

    torch._dynamo.reset()
    net = conv_denoiser()
    model = ps.Purifier(
        torch.compile(net, backend=backend), sigma=0.3, radius=0.2, steps=2, noise=NOISE, direction="score"
    )
    x = tensor(0, 2, 1, 6, 6, dtype=torch.float32)
    want = ps.Purifier(net, sigma=0.3, radius=0.2, steps=2, noise=NOISE, direction="score")(x)
    assert torch.equal(model(x), want)
    assert runs
    runs.clear()
    assert torch.equal(model(x), want)
    assert len(runs) == 8  # 2 images, 2 steps, ascent and descent
    assert not torch.utils._python_dispatch.is_in_torch_dispatch_mode()


ONES = torch.ones(4)
RANDOM = {
    "rand": lambda: torch.rand(3),
    "in place": lambda: ONES.clone().normal_(),
    "dropout": lambda: torch.nn.functional.dropout(ONES, 0.5, training=True),
    "noise in a layer": lambda: torch.nn.functional.rrelu(ONES, training=True),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*3 * [torch.ones(1, 1, 4, 4)], dropout_p=0.5),
    "multinomial": lambda: torch.multinomial(ONES, 2),
    "permutation": lambda: torch.randperm(4),
}
NOT_RANDOM = {
    "dropout in evaluation": lambda: torch.nn.functional.dropout(ONES, 0.5, training=False),
    "dropout of probability 0": lambda: torch.nn.functional.dropout(ONES, 0.0, training=True),
    "attention": lambda: torch.nn.functional.scaled_dot_product_attention(*3 * [torch.ones(1, 1, 4, 4)]),
    "a generator of its own": lambda: torch.rand(3, generator=torch.Generator().manual_seed(0)),
    "rrelu in evaluation": lambda: torch.nn.functional.rrelu(ONES, training=False),
}


@pytest.mark.parametrize("name", RANDOM)
def test_what_draws(name):
    with NoRandomNumbers("network"), pytest.raises(RuntimeError, match="the network drew random numbers"):
        RANDOM[name]()


@pytest.mark.parametrize("name", NOT_RANDOM)
def test_what_does_not_draw(name):
    with NoRandomNumbers("network"):
        NOT_RANDOM[name]()


@pytest.mark.parametrize("source", [torch.Generator().manual_seed(0), torch.arange(1e6).view(-1)])
def test_results_that_do_not_repeat_are_refused_wherever_they_come_from(source):
    calls = iter(range(1000))

    def denoiser(y, sigma):  # no global state is involved
        if isinstance(source, torch.Generator):
            return 0.9 * y + 0.01 * torch.rand(y.shape, generator=source)
        return y * (0.9 + 1e-3 * source[next(calls)])

    with pytest.raises(RuntimeError, match="the denoiser returned other values when it was called again"):
        ps.Purifier(denoiser, sigma=0.3, radius=0.2, steps=1, noise=NOISE)(tensor(0, 2, 1, 6, 6, dtype=torch.float32))


def test_a_classifier_that_draws_is_refused_too():
    purifier = ps.Purifier(conv_denoiser(), sigma=0.3, radius=0.2, steps=1, noise=NOISE)
    model = ps.PurifiedClassifier(purifier, lambda x: x.flatten(1) + torch.rand(1))
    with pytest.raises(RuntimeError, match="the classifier drew random numbers"):
        model(tensor(0, 2, 1, 6, 6, dtype=torch.float32))


def test_initial_weights_are_those_of_the_seed_and_the_global_state_is_left_alone():
    def build():
        layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.Linear(4, 3), torch.nn.Embedding(5, 2))
        module = torch.nn.Sequential(*layers, torch.nn.MultiheadAttention(4, 2))
        module.drawn = torch.randn(3)
        return [*module.parameters(), module.drawn]

    state = torch.get_rng_state()
    torch.manual_seed(7)
    want = build()
    torch.set_rng_state(state)

    def work(number):
        with seeded(7):
            return build()

    for weights in in_threads(4, work):
        assert all(torch.equal(a, b) for a, b in zip(weights, want, strict=True))
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(0), pytest.raises(RuntimeError, match="the initialization drew random numbers"):
        torch.multinomial(ONES, 2)


def test_a_number_of_cpu_threads_is_this_threads_own():
    def number_in_a_new_thread():
        def work(_):
            torch.ones(100_000).sum()  # the first operation fixes the thread's number
            return torch.get_num_threads()

        return in_threads(1, work)[0]

    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
        assert number_in_a_new_thread() == before
    assert torch.get_num_threads() == number_in_a_new_thread() == before
