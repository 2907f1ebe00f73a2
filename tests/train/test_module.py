"""The step: equal to Eq. 6 written out, whatever it is cut into."""

import math

import pytest
import torch
import torch.nn.functional as F

from tasft.data.steps import StepBatches, collate, micro_batches, mismatched, rank_share
from tasft.data.tokenize import Tokenized
from tasft.errors import UserError
from tasft.loss.adaptive import Adaptive, Goal
from tasft.train.fit import last_checkpoint, saved_step
from tasft.train.head import check_head, split
from tasft.train.module import FineTuning
from tasft.train.reference import precomputed
from tests.train.tiny import OBJECTIVES, batches, llama, module, rows


def gradients(tuned: FineTuning, cuts, kl=None):
    """Both terms of the step and the gradient of its loss, summed over `cuts`."""
    terms, total = torch.zeros(2), None
    for cut in cuts:
        made = tuned.terms(collate(cut, 0, tuned.cutting.packing), kl=kl)
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


def pair(prompt, chosen, rejected):
    """A pair as the encoder makes it: its rejected answer has the same prompt."""
    return Tokenized((*prompt, *chosen), len(prompt), True, rejected=Tokenized((*prompt, *rejected), len(prompt), True))


PAIRS = [pair((1, 2), (3, 4, 5), (6,)), pair((7,), (8,), (9, 10, 11, 12)), pair((13, 14, 15), (16, 17), (18, 19))]


def step(objective, paired=False):
    """The examples of a step, mixed of safe rows and of toxic rows or pairs."""
    toxic = PAIRS if paired else rows(40, 8)[:4]
    data = StepBatches([*rows(40, 8)[20:27], *toxic], 12, 1, 2, objective.weights)
    return data.batch(0).examples


REFERENCED = {"kto": False, "npo": False, "dpo": True, "orpo": True}


@pytest.mark.parametrize("loss", REFERENCED)
@pytest.mark.parametrize(("budget", "packing"), [(1, False), (50, False), (60, True)])
def test_losses_with_a_reference_or_pairs_do_not_depend_on_the_cut(loss, budget, packing):
    tuned, whole = module(loss, max_tokens=budget, packing=packing).eval(), module(loss).eval()
    examples = step(OBJECTIVES[loss], REFERENCED[loss])
    kl = torch.tensor(0.3) if loss == "kto" else None
    terms, gradient = gradients(whole, [examples], kl)
    assert terms[0] != 0
    assert terms[1] != 0
    for ranks in (1, 2):
        shares = [rank_share(examples, rank, ranks) for rank in range(ranks)]
        cuts = [cut for share in shares for cut in micro_batches(share, budget, packing)]
        assert len(cuts) > ranks
        cut_terms, cut_gradient = gradients(tuned, cuts, kl)
        torch.testing.assert_close(cut_terms, terms, rtol=1e-5, atol=1e-7)
        assert (cut_gradient - gradient).norm() <= 1e-5 * gradient.norm()


def logps_of(model, tokens):
    """Log-probs of the response in float64, from the model's own logits."""
    ids, start = torch.tensor(tokens.input_ids), tokens.prompt_length
    q = model(ids[None], use_cache=False).logits[0].double().log_softmax(-1)[start - 1 : -1]
    return q.gather(1, ids[start:, None]).squeeze(1)


def base_of(model, tokens):
    with model.disable_adapter(), torch.no_grad():
        return logps_of(model, tokens)


def test_a_step_of_kto_is_its_formula_from_the_models_own_logits():
    tuned = module("kto", model=llama(torch.float64)).double().eval()
    examples = step(OBJECTIVES["kto"])
    terms, gradient = gradients(tuned, [examples], torch.tensor(0.3, dtype=torch.float64))
    wanted = torch.zeros(2, dtype=torch.float64)
    for each in examples:
        r = logps_of(tuned.model, each.tokens).sum() - base_of(tuned.model, each.tokens).sum()
        sign = -1 if each.tokens.toxic else 1
        wanted[int(each.tokens.toxic)] += (1 - torch.sigmoid(0.1 * sign * (r - 0.3))) / len(examples)
    torch.testing.assert_close(terms.double(), wanted.detach(), rtol=1e-6, atol=1e-9)
    total = wanted[0] + OBJECTIVES["kto"].weight * wanted[1]
    twin = torch.cat([g.flatten() for g in torch.autograd.grad(total, tuned.trained())])
    assert (gradient - twin).norm() <= 1e-6 * twin.norm()


def test_a_step_of_dpo_is_its_formula_from_the_models_own_logits():
    tuned = module("dpo", model=llama(torch.float64)).double().eval()
    examples = step(OBJECTIVES["dpo"], paired=True)
    terms, _ = gradients(tuned, [examples])
    wanted = 0.0
    for each in examples:
        if each.tokens.rejected is not None:
            won, lost = (
                float((logps_of(tuned.model, half).sum() - base_of(tuned.model, half).sum()).detach())
                for half in each.tokens.halves
            )
            wanted += each.weight * math.log1p(math.exp(-0.1 * (won - lost)))
    assert float(terms[1]) == pytest.approx(wanted, rel=1e-6)


def test_ktos_reference_point_is_that_of_the_whole_step_however_it_is_dealt():
    tuned = module("kto", max_tokens=40)
    examples = step(OBJECTIVES["kto"])
    shifted = mismatched(examples)
    wanted = 0.0
    for i, each in enumerate(examples):
        answer = examples[(i + 1) % len(examples)].tokens
        ids = each.tokens.input_ids[: each.tokens.prompt_length] + answer.input_ids[answer.prompt_length :]
        tokens = Tokenized(ids[: max(e.longest for e in examples)], each.tokens.prompt_length, False)
        with torch.no_grad():
            difference = logps_of(tuned.model.eval(), tokens) - base_of(tuned.model, tokens)
        wanted += float(difference.sum()) / len(examples)
    assert float(tuned.drift([shifted])) == pytest.approx(wanted, rel=1e-4)
    dealt = sum(float(tuned.drift([rank_share(shifted, rank, 3)])) for rank in range(3))
    assert dealt == pytest.approx(wanted, rel=1e-4)


def test_precomputed_references_are_those_of_the_step(tmp_path):
    tuned = module("dpo").eval()
    data = [*rows(10, 0), *PAIRS]
    known = precomputed(tuned.model, tuned.parts, data, 50, True, 0, tmp_path, ["tiny"])
    again = precomputed(tuned.model, None, data, 1, False, 0, tmp_path, ["tiny"])  # no model is asked
    for row, logps, read in zip(data, known, again, strict=True):
        wanted = torch.cat([base_of(tuned.model, half) for half in row.halves])
        torch.testing.assert_close(logps.double(), wanted, rtol=1e-4, atol=1e-5)
        assert torch.equal(logps, read)
    batches = StepBatches(data, 13, 1, 2, OBJECTIVES["dpo"].weights)
    before, gradient = gradients(tuned, [batches.batch(0).examples])
    batches.references = known
    examples = batches.batch(0).examples
    for cuts in ([examples], micro_batches(examples, 30, False)):
        terms, found = gradients(tuned, cuts)
        torch.testing.assert_close(terms, before, rtol=1e-5, atol=1e-6)
        assert (found - gradient).norm() <= 1e-5 * gradient.norm()


def follower(start=0.7, steps=12):
    """Moves λ a lot, so that a mistake is seen."""
    return Adaptive(Goal(20.0, None, 3.0, 2.0, 2.0, 50.0), start, None, steps, 24)


def test_a_lambda_that_is_set_step_by_step_does_not_depend_on_the_cut(train):
    runs = []
    for budget, packing in ((10_000, False), (30, False), (60, True)):
        tuned = module("nlcl", dropout=0.2, max_tokens=budget, packing=packing)
        tuned.adaptive = follower()
        runs.append([(row["weight"], row["safe_loss"], row["toxic_loss"]) for row in train(tuned, batches("nlcl"))])
    assert len({weight for weight, _, _ in runs[0]}) > 5
    assert runs[0][0][0] == pytest.approx(0.7)
    for other in runs[1:]:
        torch.testing.assert_close(torch.tensor(other), torch.tensor(runs[0]), rtol=1e-4, atol=1e-6)


def test_what_it_follows_is_the_fall_of_the_toxic_answers():
    tuned = module("nlcl").eval()
    tuned.adaptive = follower()
    examples = batches("nlcl").batch(0).examples
    fall, answers = tuned.terms(collate(examples, 0, False)).watched
    toxic = [each.tokens for each in examples if each.tokens.toxic]
    with torch.no_grad():
        wanted = sum(float((base_of(tuned.model, t) - logps_of(tuned.model, t)).sum()) for t in toxic)
    assert int(answers) == len(toxic)
    assert float(fall) == pytest.approx(wanted, rel=1e-4)


def test_a_resumed_lambda_is_the_undisturbed_one(train, tmp_path):
    tuned = module("nlcl", dropout=0.2)
    tuned.adaptive = follower()
    whole = train(tuned, batches("nlcl"))
    first = module("nlcl", dropout=0.2)
    first.adaptive = follower()
    train(first, batches("nlcl"), tmp_path / "cut", checkpoint_every=5)
    for file in (tmp_path / "cut" / "checkpoints").glob("step*.ckpt"):
        if file.name != "step10.ckpt" and file.name != "step5.ckpt":
            file.unlink()
    assert saved_step(last_checkpoint(tmp_path / "cut" / "checkpoints")) == 10
    again = module("nlcl", dropout=0.2)
    again.adaptive = follower()
    assert train(again, batches("nlcl"), tmp_path / "cut") == whole
