"""Networks that take turns: where each is sent, as far as that can be seen without a second device."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from panokit.runtime.offload import HOST, Turns, let_in, release

DEVICE = torch.device("cpu", 0)  # the same memory by another name


class Traveller(nn.Module):
    """Notes where it is sent."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Linear(2, 2)
        self.sent: list[Any] = []

    def to(self, *args: Any, **kwargs: Any) -> "Traveller":
        self.sent.append(args[0])
        return self

    def forward(self, x: Tensor, *, scale: Tensor) -> Tensor:
        return self.part(x) * scale

    def decode(self, x: Tensor) -> Tensor:
        return self.part(x)


@pytest.fixture
def pair() -> tuple[Traveller, Traveller]:
    turns, first, second = Turns(DEVICE), Traveller(), Traveller()
    for network in (first, second):
        turns.take(network)
    return first, second


ONE = torch.ones(1, 2)


@torch.no_grad()
def test_the_one_that_is_called_comes_and_the_other_leaves(pair: tuple[Traveller, Traveller]) -> None:
    first, second = pair
    assert first.sent == second.sent == [HOST]
    first(ONE, scale=ONE)
    first(ONE, scale=ONE)
    assert (first.sent, second.sent) == ([HOST, DEVICE], [HOST])
    second.decode(ONE)  # a part counts as the whole
    assert (first.sent, second.sent) == ([HOST, DEVICE, HOST], [HOST, DEVICE])
    first(ONE, scale=ONE)
    assert (first.sent, second.sent) == ([HOST, DEVICE, HOST, DEVICE], [HOST, DEVICE, HOST])


@torch.no_grad()
def test_one_whose_parts_are_called_alone_is_let_in(pair: tuple[Traveller, Traveller]) -> None:
    first, second = pair
    first(ONE, scale=ONE)
    let_in(second)
    assert (first.sent, second.sent) == ([HOST, DEVICE, HOST], [HOST, DEVICE])
    release(second)
    let_in(second)
    let_in(nn.Linear(2, 2))
    assert second.sent == [HOST, DEVICE]


def test_nobody_leaves_while_gradients_are_recorded(pair: tuple[Traveller, Traveller]) -> None:
    first, second = pair
    found = second.decode(first(ONE, scale=ONE))
    found.sum().backward()
    assert first.sent == second.sent == [HOST, DEVICE]
    with torch.no_grad():
        second.decode(ONE)
    assert (first.sent, second.sent) == ([HOST, DEVICE, HOST], [HOST, DEVICE])


@torch.no_grad()
def test_what_they_are_given_comes_along(pair: tuple[Traveller, Traveller]) -> None:
    turns = Turns(torch.device("meta"))
    network = Traveller()
    turns.take(network)
    network.part.to("meta")
    assert network(ONE, scale=ONE).device.type == "meta"


@torch.no_grad()
def test_a_copy_is_called_in_itself(pair: tuple[Traveller, Traveller]) -> None:
    first, _ = pair
    copy = deepcopy(first)
    copy(ONE, scale=ONE)
    assert copy.sent == [HOST, DEVICE]
    assert first.sent == [HOST]


@torch.no_grad()
def test_a_network_that_is_released_stays_where_it_is(pair: tuple[Traveller, Traveller]) -> None:
    first, _ = pair
    release(first)
    first(ONE, scale=ONE)
    first.decode(ONE)
    assert first.sent == [HOST]
