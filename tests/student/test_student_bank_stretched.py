"""The adapters of each stretch, compiled: what they add and what they learn is what plain products of torch give."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from student.bank_adapter import BankAdapter, Projection
from student.bank_products import ROWS
from student.bank_stretched import Stretched
from student.routing import Family, Routing, Stretch

NAMES = ("layers.0.q_proj", "layers.0.k_proj", "layers.0.v_proj")


@dataclass(frozen=True)
class Case:
    features: int
    outs: tuple[int, int, int]
    stretches: tuple[tuple[int, tuple[tuple[int, tuple[int, ...]], ...]], ...]
    """Tokens, and the rank and projections of each adapter on them."""


adapters = st.tuples(st.integers(1, 11), st.sampled_from([(0, 1, 2), (0, 2), (1,)]))
cases = st.builds(
    Case,
    st.integers(1, 90),
    st.tuples(*[st.integers(1, 150)] * 3),
    st.lists(
        st.tuples(st.integers(1, 2 * ROWS + 9), st.lists(adapters, max_size=2).map(tuple)), min_size=1, max_size=4
    ).map(tuple),
)


class Pass:
    """A pass of a case, with values of its own."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        torch.manual_seed(case.features)
        self.layers = [nn.Linear(case.features, out, bias=False).to(dtype).requires_grad_(False) for out in case.outs]
        self.family = Family("layers.0.q_proj/x", dict(zip(NAMES, self.layers, strict=True)))
        self.stretches, at = [], 0
        for tokens, parts in case.stretches:
            acting = tuple(self._adapter(case, rank, places, i) for i, (rank, places) in enumerate(parts))
            self.stretches.append(Stretch(at, at + tokens, acting))
            at += tokens
        self.x = torch.randn(at, case.features, dtype=dtype, requires_grad=True)
        self.gs = [torch.randn(at, out, dtype=dtype) for out in case.outs]

    def _adapter(self, case: Case, rank: int, places: tuple[int, ...], order: int) -> BankAdapter:
        projections = [Projection(NAMES[i], case.features, case.outs[i]) for i in places]
        # The lower of two is a frozen version, as in a loop over a parent.
        made = BankAdapter(projections, rank, 0.5 + order, torch.device("cpu"), trainable=order == 1)
        made.values_P.copy_(0.3 * torch.randn(made.values_P.shape))
        self.family = Family(next(iter(made.families)), self.family.layers)
        return made

    def ours(self) -> list[torch.Tensor]:
        """Outputs, the derivative by x, and each adapter's gradient."""
        anchor = torch.zeros((), requires_grad=True)
        routing = Routing(tuple(self.stretches), anchor)
        outputs = Stretched.apply(self.x, anchor, self.family, routing)
        (dx,) = torch.autograd.grad(outputs, self.x, self.gs)
        grads = []
        for adapter in self._trained():
            adapter.complete_gradient()
            assert adapter.grad_P is not None
            grads.append(adapter.grad_P.clone())
            adapter.forget_gradient()
        return [*(output.detach() for output in outputs), dx, *grads]

    def plain(self) -> list[torch.Tensor]:
        x = self.x.detach().float().requires_grad_()
        values = {adapter: adapter.values_P.clone().requires_grad_() for adapter in self._all()}
        outputs = []
        for name, layer in zip(NAMES, self.layers, strict=True):
            y = x @ layer.weight.float().T
            rows = []
            for stretch in self.stretches:
                part = y[stretch.start : stretch.stop]
                for adapter in stretch.adapters:
                    part = part + self._added(adapter, values[adapter], name, x[stretch.start : stretch.stop])
                rows.append(part)
            outputs.append(torch.cat(rows))
        wanted = [x, *(values[adapter] for adapter in self._trained())]
        found = torch.autograd.grad(outputs, wanted, [g.float() for g in self.gs])
        return [*(output.detach() for output in outputs), *found]

    def _added(self, adapter: BankAdapter, values_P: torch.Tensor, name: str, x: torch.Tensor) -> torch.Tensor | float:
        factors = adapter.factors()
        if name not in factors:
            return 0.0

        def of(view: torch.Tensor) -> torch.Tensor:
            return values_P[view.storage_offset() :][: view.numel()].view(view.shape)

        a_RI, b_RO = factors[name]
        return adapter.scaling * (x @ of(a_RI).T) @ of(b_RO)

    def _all(self) -> list[BankAdapter]:
        return list(dict.fromkeys(adapter for stretch in self.stretches for adapter in stretch.adapters))

    def _trained(self) -> list[BankAdapter]:
        return [adapter for adapter in self._all() if adapter.grad_P is not None]


@settings(deadline=None, max_examples=60)
@given(case=cases.filter(lambda case: any(parts for _, parts in case.stretches)))
def test_outputs_and_gradients_of_any_mix_are_those_of_plain_products(case: Case) -> None:
    mix = Pass(case, torch.float32)
    for found, expected in zip(mix.ours(), mix.plain(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@settings(deadline=None, max_examples=30)
@given(case=cases.filter(lambda case: any(parts for _, parts in case.stretches)))
def test_in_bfloat16_sums_are_rounded_once_whatever_number_of_adapters(case: Case) -> None:
    mix = Pass(case, torch.bfloat16)
    for place, (found, expected) in enumerate(zip(mix.ours(), mix.plain(), strict=True)):
        assert found.dtype == (torch.bfloat16 if place < 4 else torch.float32)
        # The base's product is rounded, and the sum: half a unit in the last of 8 bits each. The base's part of the
        # derivative by x is rounded for each projection; an adapter's gradient is not rounded at all.
        most = (2**-8 if place < 3 else 2**-7 if place == 3 else 1e-3) * float(expected.abs().max())
        torch.testing.assert_close(found.float(), expected, rtol=2**-7 if place < 4 else 1e-3, atol=most)


def test_a_family_in_float16_is_computed_in_float32() -> None:
    case = Case(24, (16, 8, 8), ((5, ((4, (0, 1, 2)), (3, (0, 2)))),))
    mix = Pass(case, torch.float16)
    for found, expected in zip(mix.ours(), mix.plain(), strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("spoilt", ["adapter", "input", "gradient"])
@pytest.mark.parametrize("lengths", [(1,), (3, 1), (ROWS + 1, 2)])
def test_what_is_no_number_in_one_stretch_stays_there(lengths: tuple[int, ...], spoilt: str) -> None:
    parts = ((4, (0, 1, 2)), (4, (0, 1, 2)))
    mix = Pass(Case(20, (8, 8, 8), tuple((length, parts) for length in (*lengths, 7))), torch.float32)
    whole = mix.ours()
    rest = mix.stretches[0].stop
    if spoilt == "adapter":
        mix.stretches[0].adapters[1].values_P.fill_(torch.nan)
    elif spoilt == "input":
        mix.x.data[:rest] = torch.nan
    else:
        for g in mix.gs:
            g[:rest] = torch.nan
    found = mix.ours()
    # The derivative by x does not ask for x.
    assert found[0 if spoilt == "input" else 3][:rest].isnan().all()
    assert found[4].isnan().any()
    for before, after in zip(whole[:4], found[:4], strict=True):
        assert torch.equal(before[rest:], after[rest:])
    for before, after in zip(whole[5:], found[5:], strict=True):
        assert torch.equal(before, after)


def test_on_several_threads_it_is_the_same_bit_for_bit() -> None:
    parts = ((4, (0, 1, 2)), (3, (0, 2)))
    case = Case(50, (40, 24, 24), tuple((length, parts) for length in (60, 1, 130, 45, 45)))
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            mix = Pass(case, torch.float32)
            # The base's own products may round by the number of threads.
            for layer in mix.layers:
                layer.weight.zero_()
            found.append(mix.ours())
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


def test_one_adapter_on_several_stretches_learns_from_all_of_them_on_several_threads() -> None:
    mix = Pass(Case(16, (8, 8, 8), ((70, ((2, (0, 1, 2)), (2, (0, 1, 2)))), (80, ()))), torch.float32)
    first, second = mix.stretches
    mix.stretches[1] = Stretch(second.start, second.stop, first.adapters)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        (*_, gradient) = mix.ours()
    finally:
        torch.set_num_threads(threads)
    (*_, expected) = mix.plain()
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


def test_a_layer_that_reads_other_tokens_than_the_pass_has_is_refused() -> None:
    mix = Pass(Case(16, (8, 8, 8), ((6, ((2, (0, 1, 2)),)),)), torch.float32)
    mix.x = mix.x[:5].detach().requires_grad_()
    with pytest.raises(ValueError, match=r"\(5, 16\), of 6 tokens"):
        mix.ours()
