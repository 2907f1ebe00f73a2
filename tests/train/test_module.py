"""The step: equal to Eq. 6 written out, whatever it is cut into."""

import pytest
import torch
import torch.nn.functional as F

from tasft.data.steps import collate, micro_batches, rank_share
from tasft.errors import UserError
from tasft.train.head import check_head, split
from tasft.train.module import FineTuning
from tests.train.tiny import OBJECTIVES, batches, llama, module


def gradients(tuned: FineTuning, cuts):
    """Both terms of the step and the gradient of its loss, summed over `cuts`."""
    terms, total = torch.zeros(2), None
    for cut in cuts:
        made = tuned.terms(collate(cut, 0, tuned.cutting.packing))
        terms = terms + torch.stack([made.safe, made.toxic]).detach()
        found = torch.autograd.grad(made.total, tuned.trained())
        total = found if total is None else [a + b for a, b in zip(total, found, strict=True)]
    return terms, torch.cat([g.flatten() for g in total])


def eq_6(tuned: FineTuning, examples, loss, weight):
    """The step's loss from the model's own logits in float64: the mean over groups of 3 of L_SFT(safe) + λ L(toxic)."""
    causal = tuned.model
    embedding = F.normalize(causal.get_base_model().get_input_embeddings().weight.double(), dim=1)
    groups = [examples[i : i + 3] for i in range(0, len(examples), 3)]
    terms = torch.zeros(2, dtype=torch.float64)
    for group in groups:
        nll, pushed = [], []
        for each in group:
            ids = torch.tensor(each.tokens.input_ids)
            start = each.tokens.prompt_length
            q = causal(ids[None], use_cache=False).logits[0].double().softmax(-1)[start - 1 : -1]
            y = ids[start:]
            logp = q.gather(1, y[:, None]).squeeze(1).log()
            if not each.tokens.toxic:
                nll.append(-logp)
            elif loss == "emd":
                pushed.append(-((embedding[y] - q @ embedding) ** 2).sum())
            else:
                pushed.append(-torch.log1p(-logp.mean().exp()))
        if nll:
            terms[0] = terms[0] + torch.cat(nll).mean() / len(groups)
        if pushed:
            terms[1] = terms[1] + torch.stack(pushed).mean() / len(groups)
    return terms, terms[0] + weight * terms[1]


@pytest.mark.parametrize("loss", ["emd", "nlcl"])
def test_a_step_is_eq_6_from_the_models_own_logits(loss):
    tuned = module(loss, model=llama(torch.float64)).double().eval()
    examples = batches(loss).batch(0).examples
    assert {e.tokens.toxic for e in examples} == {True, False}
    terms, gradient = gradients(tuned, [examples])
    wanted, total = eq_6(tuned, examples, loss, OBJECTIVES[loss].weight)
    torch.testing.assert_close(terms.double(), wanted.detach(), rtol=1e-6, atol=1e-9)
    twin = torch.cat([g.flatten() for g in torch.autograd.grad(total, tuned.trained())])
    assert (gradient - twin).norm() <= 1e-6 * twin.norm()  # the examples' weights are float32


@pytest.mark.parametrize("loss", ["sft", "emd", "nlcl"])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize(("budget", "packing"), [(1, False), (50, False), (10_000, False), (50, True), (10_000, True)])
def test_terms_and_gradients_do_not_depend_on_the_cut(loss, ranks, budget, packing):
    tuned = module(loss, max_tokens=budget, packing=packing).eval()
    examples = batches(loss).batch(1).examples
    whole = module(loss).eval()
    terms, gradient = gradients(whole, [examples])
    shares = [rank_share(examples, rank, ranks) for rank in range(ranks)]
    cuts = [cut for share in shares for cut in micro_batches(share, budget, packing)]
    assert budget > 1 or len(cuts) == len(examples)
    split_terms, split_gradient = gradients(tuned, cuts)
    torch.testing.assert_close(split_terms, terms, rtol=1e-5, atol=1e-7)
    assert (split_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def test_a_rank_without_toxic_rows_has_a_gradient():
    tuned = module("emd").eval()
    safe = [e for e in batches().batch(0).examples if not e.tokens.toxic]
    terms, gradient = gradients(tuned, [safe])
    assert terms[1] == 0
    assert gradient.abs().sum() > 0


def test_a_head_that_is_not_the_models_own_is_refused():
    model = llama()
    parts = split(model)
    check_head(model, parts)
    with pytest.raises(UserError, match="does not give the model's own logits"):
        check_head(model, type(parts)(parts.backbone, type(parts.head)(parts.head.weight, scale=1.1)))


def test_packing_is_refused_where_examples_of_a_row_see_each_other():
    model = llama()
    parts = split(model)
    check_head(model, parts, packing=True)

    def leaky(input_ids, position_ids, attention_mask, use_cache):
        return model.get_decoder()(input_ids=input_ids, use_cache=use_cache)

    with pytest.raises(UserError, match="examples of one row see each other"):
        check_head(model, type(parts)(leaky, parts.head), packing=True)
