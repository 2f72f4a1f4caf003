"""Flows of many prefixes, and the bits that split them."""

from __future__ import annotations

import ipaddress
import statistics

import pytest

from m2m.lab.prefix_flows import (
    BITS,
    NETWORK,
    PREFIXES,
    SIZES,
    Weights,
    best_bit,
    draw,
    mask,
    most_significant,
)


@pytest.mark.parametrize("weights", Weights)
def test_a_draw_is_the_same_whenever_it_is_made(weights: Weights) -> None:
    assert draw(weights, 1, 50) == draw(weights, 1, 50)
    assert draw(weights, 1, 50) != draw(weights, 2, 50)


def test_flows_are_within_the_network_and_no_two_alike() -> None:
    flows = draw(Weights.BIMODAL, 0, 500).flows
    network = ipaddress.ip_network(NETWORK)
    assert network.num_addresses == PREFIXES * 256
    assert all(ipaddress.ip_address(flow.address) in network for flow in flows)
    assert all(SIZES[0] <= flow.size <= SIZES[1] for flow in flows)
    assert len({(flow.address, flow.port) for flow in flows}) == 500
    assert [flow.number for flow in flows] == list(range(500))


def test_flows_come_by_the_weights() -> None:
    drawn = draw(Weights.BIMODAL, 0, 20_000)
    light = [prefix for prefix, weight in enumerate(drawn.weights) if weight < 8]
    expected = sum(drawn.weights[prefix] for prefix in light) / sum(drawn.weights)
    found = sum(flow.prefix in light for flow in drawn.flows) / 20_000
    assert found == pytest.approx(expected, abs=0.02)


def test_weights_are_of_their_distribution() -> None:
    gaussian = [weight for seed in range(50) for weight in draw(Weights.GAUSSIAN, seed, 1).weights]
    assert statistics.fmean(gaussian) == pytest.approx(4, abs=0.2)
    assert statistics.stdev(gaussian) == pytest.approx(1, abs=0.1)
    bimodal = [weight for seed in range(50) for weight in draw(Weights.BIMODAL, seed, 1).weights]
    heavy = [weight for weight in bimodal if weight > 10]
    assert len(heavy) / len(bimodal) == pytest.approx(0.5, abs=0.05)
    assert statistics.fmean(heavy) == pytest.approx(16, abs=0.2)
    assert min(*gaussian, *bimodal) > 0


def test_the_best_bit_shares_weights_out_most_evenly() -> None:
    for best in range(BITS):
        # Each bit but one goes with a larger weight.
        others = [bit for bit in range(BITS) if bit != best]
        weights = [1.0 + sum(prefix >> bit & 1 for bit in others) for prefix in range(PREFIXES)]
        assert best_bit(weights) == best


def test_of_bits_that_are_alike_the_most_significant_is_taken() -> None:
    assert best_bit([1.0] * PREFIXES) == most_significant() == BITS - 1


def test_a_mask_is_of_one_bit_of_the_prefix() -> None:
    assert mask(0) == "0.0.1.0"
    assert mask(most_significant()) == "0.0.16.0"
    halves = list(ipaddress.ip_network(NETWORK).subnets())
    bit = int(ipaddress.ip_address(mask(most_significant())))
    assert [int(half.network_address) & bit for half in halves] == [0, bit]
