"""The fused values per token against plain formulas, by value, gradient, precision and memory."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tasft.loss import naive, ops
from tasft.loss.vocabulary import Head, TokenEmbedding

D, E, V = 8, 6, 50
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
OPS = ["token_logps", "token_emd_bound", "token_emd", "expected_embedding"]
HEADS = {
    "llama": {},
    "cohere": {"scale": 0.25},
    "gemma2": {"softcap": 1.5},
    "all": {"bias": torch.linspace(-1, 1, V, dtype=torch.float64), "scale": 0.5, "softcap": 2.0},
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Chunks as small as they may be: MIN_ROWS each."""
    for device in ops.CHUNK_ELEMENTS:
        monkeypatch.setitem(ops.CHUNK_ELEMENTS, device, 1)


def fused(op: str, hidden: Tensor, labels: Tensor, head: Head, embedding: Tensor) -> Tensor:
    if op == "token_logps":
        return ops.token_logps(hidden, labels, head)
    normed = TokenEmbedding.from_weight(embedding)
    if op == "expected_embedding":
        return ops.expected_embedding(hidden, head, normed)
    return getattr(ops, op)(hidden, labels, head, normed)


def twin(op: str, hidden: Tensor, labels: Tensor, head: Head, embedding: Tensor) -> Tensor:
    if op == "token_logps":
        return naive.token_logps(hidden, labels, head)
    if op == "expected_embedding":
        return naive.expected_embedding(hidden, head, embedding)
    return getattr(naive, op)(hidden, labels, head, embedding)


def case(tokens: int = 300, vocabulary: int = V, **head) -> tuple[Tensor, Tensor, Head, Tensor]:
    torch.manual_seed(0)
    normal = partial(torch.randn, dtype=torch.float64)
    hidden = normal(tokens, D).requires_grad_()
    return (
        hidden,
        torch.randint(vocabulary, (tokens,)),
        Head(normal(vocabulary, D), **head),
        normal(vocabulary, E),
    )


def gradients(values: Tensor, *wanted: Tensor) -> tuple[Tensor, ...]:
    """With a different incoming gradient for every value."""
    weights = torch.linspace(-1, 2, values.numel(), dtype=torch.float64).view(values.shape)
    return torch.autograd.grad((values * weights).sum(), wanted)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("op", OPS)
def test_frozen_matrices_match_the_twin_in_value_and_gradient(op, head):
    inputs = case(**HEADS[head])
    got, expected = fused(op, *inputs), twin(op, *inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, inputs[0]), gradients(expected, inputs[0]))


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("op", OPS)
def test_trained_matrices_match_the_twin_in_every_gradient(op, head):
    hidden, labels, frozen, embedding = case(**HEADS[head])
    trained = replace(
        frozen,
        weight=frozen.weight.requires_grad_(),
        bias=None if frozen.bias is None else frozen.bias.clone().requires_grad_(),
    )
    wanted = [hidden, trained.weight]
    if trained.bias is not None:
        wanted.append(trained.bias)
    if op != "token_logps":
        wanted.append(embedding.requires_grad_())
    got, expected = (f(op, hidden, labels, trained, embedding) for f in (fused, twin))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, *wanted), gradients(expected, *wanted))


@pytest.mark.parametrize("op", OPS)
def test_one_tied_and_trained_matrix_gets_the_gradient_of_both_its_uses(op):
    hidden, labels, head, _ = case()
    weight = head.weight.requires_grad_()
    got, expected = (f(op, hidden, labels, head, weight) for f in (fused, twin))
    torch.testing.assert_close(gradients(got, hidden, weight), gradients(expected, hidden, weight))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("tokens", [0, 1, 127, 128, 129, 255, 256, 257])
def test_chunk_boundaries_do_not_show(op, tokens):
    inputs = case(tokens)
    got, expected = fused(op, *inputs), twin(op, *inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, inputs[0]), gradients(expected, inputs[0]))


def test_chunks_are_equal_cover_every_row_and_are_never_short():
    for rows in [0, 1, 128, 255, 256, 1000, 1025]:
        lengths = [s.stop - s.start for s in ops._chunks(torch.empty(rows, 1), V)]
        assert sum(lengths) == rows
        assert max(lengths) - min(lengths) <= 1
        assert min(lengths) >= min(rows, ops.MIN_ROWS)
        assert max(lengths) < 2 * ops.MIN_ROWS


def test_no_tokens_still_reach_every_trained_matrix():
    hidden, labels, head, embedding = case(tokens=0)
    wanted = hidden, head.weight.requires_grad_(), embedding.requires_grad_()
    for grad, tensor in zip(
        torch.autograd.grad(fused("token_emd", hidden, labels, head, embedding).sum(), wanted),
        wanted,
        strict=True,
    ):
        torch.testing.assert_close(grad, torch.zeros_like(tensor))


@pytest.mark.parametrize("op", OPS)
def test_without_a_gradient_the_values_are_the_same(op):
    hidden, labels, head, embedding = case()
    expected = fused(op, hidden, labels, head, embedding).detach()
    with torch.no_grad():
        torch.testing.assert_close(fused(op, hidden, labels, head, embedding), expected)
    assert not fused(op, hidden.detach(), labels, head, embedding).requires_grad


def test_a_zero_embedding_lies_at_the_origin():
    hidden, labels, head, embedding = case()
    labels[:] = 3
    embedding[3] = 0
    emd = fused("token_emd", hidden, labels, head, embedding)
    torch.testing.assert_close(emd, torch.ones_like(emd))
    for op in OPS:
        got = fused(op, hidden, labels, head, embedding.requires_grad_())
        torch.testing.assert_close(got, twin(op, hidden, labels, head, embedding))
        if op != "token_logps":
            (grad,) = gradients(got, embedding)
            assert grad.isfinite().all()


def error(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm())


def naive_as_in_training(op: str, hidden: Tensor, labels: Tensor, head: Head, embedding: Tensor) -> Tensor:
    """The textbook code of a low-precision model: logits and mean in its dtype, softmax in float32."""
    z = (hidden @ head.weight.T).float()
    if op == "token_logps":
        return z.log_softmax(-1).gather(-1, labels[:, None]).squeeze(-1)
    unit = torch.nn.functional.normalize(embedding.float(), dim=-1).to(embedding.dtype)
    mean = (z.softmax(-1).to(unit.dtype) @ unit).float()
    e_y = unit[labels].float()
    return (e_y - mean).square().sum(-1) if op == "token_emd_bound" else 1 - (e_y * mean).sum(-1)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_gpu)])
@pytest.mark.parametrize("op", OPS[:3])
@pytest.mark.parametrize(("dtype", "tolerance", "slack"), [(torch.float32, 2e-6, 1e-6), (torch.bfloat16, 3e-3, 1e-7)])
def test_low_precision_is_as_good_as_the_textbook_code(op, dtype, tolerance, slack, device):
    torch.manual_seed(0)
    wide, vocabulary = 64, 700
    hidden = torch.randn(300, wide).to(device, dtype)
    weight = (torch.randn(vocabulary, wide) / 4).to(device, dtype)
    embedding = torch.randn(vocabulary, wide).to(device, dtype)
    labels = torch.randint(vocabulary, (300,)).to(device)

    def value_and_gradient(f: Callable[..., Tensor], precision: torch.dtype) -> tuple[Tensor, Tensor]:
        states = hidden.to(precision, copy=True).requires_grad_()
        values = f(op, states, labels, Head(weight.to(precision)), embedding.to(precision))
        return values.detach(), torch.autograd.grad(values.sum(), states)[0]

    truth = value_and_gradient(twin, torch.float64)
    got = value_and_gradient(fused, dtype)
    textbook = value_and_gradient(naive_as_in_training, dtype)
    assert got[0].dtype == torch.float32
    assert got[1].dtype == dtype
    for x, y, t in zip(got, textbook, truth, strict=True):
        assert error(x, t) <= tolerance
        assert error(x, t) <= error(y, t) * 1.1 + slack  # in float32 the processor's order of sums decides


@pytest.mark.parametrize(("dtype", "margin"), [(torch.float32, 27.0), (torch.float64, 60.0)])
def test_logps_survive_where_the_probability_rounds_to_one(dtype, margin):
    # One other token, `margin` below: log q = -log(1 + e^-margin), about -e^-margin, and 1 - q is about e^-margin.
    logits = torch.tensor([[margin, 0.0]], dtype=dtype, requires_grad=True)
    logp = ops.token_logps(logits, torch.tensor([0]), Head(torch.eye(2, dtype=dtype)))
    small = torch.tensor([-margin], dtype=dtype).exp()
    torch.testing.assert_close(logp, -small, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(logp, logits)
    torch.testing.assert_close(grad, torch.stack([small, -small], 1), rtol=1e-5, atol=0)


def test_autocast_does_not_reach_inside():
    hidden, labels, head, _ = case()
    hidden, head = hidden.float(), Head(head.weight.float())
    expected = ops.token_logps(hidden, labels, head)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(ops.token_logps(hidden, labels, head), expected, rtol=0, atol=0)


def test_a_second_derivative_is_refused_and_not_wrong():
    hidden, labels, head, _ = case()
    (grad,) = torch.autograd.grad(ops.token_logps(hidden, labels, head).square().sum(), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that an operation gives back."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_no_tensor_holds_the_logits_of_all_tokens(op, trained):
    tokens = 5 * ops.MIN_ROWS
    hidden, labels, head, embedding = case(tokens)
    head.weight.requires_grad_(trained)
    with LargestTensor() as largest:
        fused(op, hidden, labels, head, embedding).sum().backward()
    assert ops.MIN_ROWS * V <= largest.numel < 2 * ops.MIN_ROWS * V
    with LargestTensor() as largest:
        twin(op, hidden, labels, head, embedding).sum().backward()
    assert largest.numel == tokens * V
