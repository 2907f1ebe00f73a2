"""Step batches, shares, micro-batches and their tensors: how the work is cut changes nothing."""

from collections import Counter
from functools import partial

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tasft.data.steps import StepBatches, Weighted, collate, micro_batches, rank_share
from tasft.data.tokenize import Tokenized
from tasft.loss.ops import token_logps
from tasft.loss.weighting import example_weights
from tasft.train.head import split


def tokenized(length, prompt_length=1, toxic=False, first=0):
    return Tokenized(tuple(range(first, first + length)), prompt_length, toxic)


def batches(count=20, batch_size=6, epochs=3, seed=0, start=0, weigh=None):
    examples = [tokenized(2 + i % 5, toxic=i % 7 == 0, first=100 * i) for i in range(count)]
    weigh = weigh or partial(example_weights, group=3, weight=1.0)
    return StepBatches(examples, batch_size, epochs, seed, weigh, start)


def weighted(*lengths, prompt_length=1):
    return [Weighted(tokenized(n, prompt_length, first=100 * i), 1.0, i) for i, n in enumerate(lengths)]


def test_a_step_depends_on_its_number_alone():
    in_order = list(batches())
    assert [batch.step for batch in in_order] == list(range(12))
    assert [batch.epoch for batch in in_order] == [0] * 4 + [1] * 4 + [2] * 4
    anew = batches()
    assert [anew.batch(step) for step in reversed(range(12))] == in_order[::-1]
    assert list(batches(start=5)) == in_order[5:]
    assert list(batches(epochs=2)) == in_order[:8]
    assert list(batches(seed=1)) != in_order


def test_an_epoch_holds_every_example_once_in_an_order_of_its_own():
    steps = list(batches())
    assert [len(batch.examples) for batch in steps] == [6, 6, 6, 2] * 3
    epochs = [[e.tokens for batch in steps if batch.epoch == epoch for e in batch.examples] for epoch in range(3)]
    assert [set(epoch) for epoch in epochs] == [set(batches().examples)] * 3
    assert [len(epoch) for epoch in epochs] == [20] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_steps_of_the_papers_runs():
    # 21,000 / 96 = 218.75: 218 full steps and one of 72 examples; three epochs are 657 steps.
    examples = [tokenized(2)] * 21_000
    paper = StepBatches(examples, 96, 3, 0, lambda lengths, toxic: [1.0] * len(lengths))
    assert (paper.steps_per_epoch, len(paper)) == (219, 657)
    assert len(paper.batch(218).examples) == 21_000 - 218 * 96 == 72
    assert len(paper.batch(656).examples) == 72
    assert StepBatches(examples[:96], 96, 3, 0, paper.weigh).steps_per_epoch == 1


def test_weights_are_those_of_the_examples_in_their_order():
    def weigh(lengths, toxic):
        assert toxic == [length == 4 for length in lengths]
        return [float(length) for length in lengths]

    examples = [tokenized(length + 2, prompt_length=2, toxic=length == 4) for length in range(1, 9)]
    for batch in StepBatches(examples, 3, 1, 0, weigh):
        assert [e.weight for e in batch.examples] == [e.tokens.response_length for e in batch.examples]
        assert [e.index for e in batch.examples] == list(range(len(batch.examples)))


def test_safe_weights_of_a_step_sum_to_one():
    whole = 0
    for batch in batches(count=40, batch_size=12):
        groups = [batch.examples[i : i + 3] for i in range(0, len(batch.examples), 3)]
        with_safe = sum(any(not e.tokens.toxic for e in group) for group in groups)
        safe = sum(e.weight for e in batch.examples if not e.tokens.toxic)
        assert safe == pytest.approx(with_safe / len(groups))
        whole += with_safe == len(groups)
    assert whole > 0  # steps whose every group has a safe row: there the sum is 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_of_ranks_are_a_partition_and_balanced(world_size):
    examples = weighted(*(1 + i * 37 % 90 for i in range(96)))
    shares = [rank_share(examples, rank, world_size) for rank in range(world_size)]
    assert sorted((e for share in shares for e in share), key=lambda e: e.index) == examples
    for share in shares:
        assert [e.index for e in share] == sorted(e.index for e in share)
    loads = [sum(len(e.tokens.input_ids) for e in share) for share in shares]
    assert max(loads) - min(loads) <= 90  # the longest example
    assert max(loads) <= 1.02 * min(loads)


def test_shares_by_hand():
    examples = weighted(3, 9, 4, 5)
    assert [[e.index for e in rank_share(examples, rank, 2)] for rank in (0, 1)] == [[0, 1], [2, 3]]  # 9 + 3 and 5 + 4
    assert [len(rank_share(examples, rank, 6)) for rank in range(6)] == [1, 1, 1, 1, 0, 0]


def test_micro_batches_by_hand():
    examples = weighted(5, 2, 9, 3, 2)
    lengths = [[len(e.tokens.input_ids) for e in cut] for cut in micro_batches(examples, 9, packing=False)]
    assert lengths == [[2, 2, 3], [5], [9]]
    lengths = [[len(e.tokens.input_ids) for e in cut] for cut in micro_batches(examples, 9, packing=True)]
    assert lengths == [[2, 2, 3], [5], [9]]
    # padded to 5, four examples would be 20 tokens; without padding they are 12
    assert [len(cut) for cut in micro_batches(examples, 12, packing=False)] == [3, 1, 1]
    assert [len(cut) for cut in micro_batches(examples, 12, packing=True)] == [4, 1]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 64, 200, 10_000])
def test_micro_batches_keep_to_the_budget(packing, max_tokens):
    examples = weighted(*(1 + i * 37 % 90 for i in range(96)))
    cuts = micro_batches(examples, max_tokens, packing)
    assert Counter(e.index for cut in cuts for e in cut) == Counter(range(96))
    for cut in cuts:
        size = collate(cut, 0, packing).input_ids.numel()
        assert size <= max_tokens or len(cut) == 1
    if max_tokens == 10_000 and packing:
        assert len(cuts) == 1
    assert micro_batches([], max_tokens, packing) == []


def test_collated_by_hand():
    # P p | a b EOS and P | c EOS, where padding and EOS are one token, 9, which stands in a prompt, too.
    first = Weighted(Tokenized((1, 9, 5, 6, 9), 2, False), 0.25, 0)
    second = Weighted(Tokenized((1, 7, 9), 1, True), 0.75, 1)
    padded, packed = (collate([first, second], pad_id=9, packing=packing) for packing in (False, True))
    assert padded.input_ids.tolist() == [[1, 9, 5, 6, 9], [1, 7, 9, 9, 9]]
    assert padded.attention_mask.tolist() == [[True] * 5, [True] * 3 + [False] * 2]
    assert padded.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 0, 0]]
    assert padded.at.tolist() == [1, 2, 3, 5, 6]
    assert packed.input_ids.tolist() == [[1, 9, 5, 6, 9, 1, 7, 9]]
    assert packed.attention_mask is None
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]]
    assert packed.at.tolist() == [1, 2, 3, 5, 6]
    for micro in (padded, packed):
        assert micro.labels.tolist() == [5, 6, 9, 7, 9]
        assert micro.row.tolist() == [0, 0, 0, 1, 1]
        assert micro.toxic.tolist() == [False, True]
        assert micro.weights.tolist() == [0.25, 0.75]
        assert micro.tokens == 8


def test_padded_and_packed_pair_the_same_tokens():
    examples = weighted(4, 9, 2, 7, 7, prompt_length=2)[:2] + weighted(5, 6, 11, prompt_length=3)
    padded, packed = (collate(examples, pad_id=0, packing=packing) for packing in (False, True))

    def pairs(micro):
        return list(
            zip(micro.input_ids.flatten()[micro.at].tolist(), micro.labels.tolist(), micro.row.tolist(), strict=True)
        )

    assert pairs(padded) == pairs(packed)
    assert all(after == before + 1 for before, after, _ in pairs(padded))  # these tokens count upwards
    assert Counter(packed.row.tolist()) == {i: e.tokens.response_length for i, e in enumerate(examples)}


def test_an_example_without_a_prompt_learns_all_but_its_first_token():
    micro = collate([Weighted(Tokenized((5, 6, 7), 0, False), 1.0, 0)], 0, packing=True)
    assert micro.at.tolist() == [0, 1]
    assert micro.labels.tolist() == [6, 7]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_examples_in_one_row_do_not_see_each_other(attention):
    """Alone, padded and packed, every token has the same state and the same log-probability."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        attn_implementation=attention, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    parts = split(model)
    generator = torch.Generator().manual_seed(1)
    examples = [
        Weighted(Tokenized(tuple(torch.randint(50, (n,), generator=generator).tolist()), 2, False), 1.0, i)
        for i, n in enumerate((12, 3, 30, 7, 21))
    ]

    def states(chosen, packing):
        micro = collate(chosen, pad_id=0, packing=packing)
        hidden = parts.hidden(micro.input_ids, micro.position_ids, micro.attention_mask).flatten(0, 1)[micro.at]
        return hidden, token_logps(hidden, micro.labels, parts.head)

    with torch.no_grad():
        alone = [torch.cat(each) for each in zip(*(states([e], False) for e in examples), strict=True)]
        micro = collate(examples, pad_id=0, packing=True)
        for packing in (False, True):
            for got, want in zip(states(examples, packing), alone, strict=True):
                torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        # with a cache, restarting positions are silently ignored: the examples see each other, and this test sees it
        cached = parts.backbone(micro.input_ids, position_ids=micro.position_ids, use_cache=True).last_hidden_state
        assert (cached.flatten(0, 1)[micro.at] - alone[0]).abs().max() > 1
        own = torch.cat([model(torch.tensor([e.tokens.input_ids])).logits[0, 1:-1] for e in examples])
        logps = own.log_softmax(-1).gather(1, micro.labels[:, None])[:, 0]
        torch.testing.assert_close(alone[1], logps, rtol=1e-5, atol=1e-5)
