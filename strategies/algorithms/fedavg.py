"""FedAvg: the mean of the sites' models is the next model. McMahan et al. 2017, "Communication-Efficient Learning of Deep Networks from
Decentralized Data", algorithm 1."""

from __future__ import annotations

from fedml.strategies.algorithms.algorithm import Algorithm, Server, as_far, at_server, by_weight, keep_mean
from fedml.strategies.algorithms.options import ByWeighting


def fedavg(weighting: ByWeighting = "persons") -> Algorithm:
    """The mean of the sites' models, weighted by their training persons or equally."""
    return at_server(Server(keep_mean, weighting, {}, as_far), f"The next model is the mean of the sites' models, {by_weight(weighting)}.")
