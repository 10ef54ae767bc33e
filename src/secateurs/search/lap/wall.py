"""The latency action wall: which options of a group still leave a way to stay within the limits.

Card. Formula: option o of group g is open if min over all later choices of T(earlier choices, o, later ones) ≤ T*; an
action is moved to the nearest open option, first towards more pruning. Source: AMC's action wall carried over to
latency (docs/methods.md, "LAP state, action and wall"). Ours: the minimum is exact where tables are staircases or not
monotone, by variable elimination over the cost tables (:mod:`secateurs.search.elimination`); AMC assumes the largest
ratio later on. One completion that is known to fit is carried along, so an episode can always be finished within the
limits, also where sums over many groups had to be rounded or several limits hold at once. Cost: one pass of elimination
(some milliseconds) for decisions near the wall, one table look-up for the others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from secateurs.search.elimination import FORBIDDEN, Piece
from secateurs.search.exact import solve_exact
from secateurs.search.lagrangian import cheapest, relax
from secateurs.search.lap.choices import Choices, Network
from secateurs.search.problem import widths_of


class Wall:
    """The wall of one problem; :meth:`begin` starts an episode, :meth:`decide` goes through its groups.

    Args:
        choices: the decisions; the wall allows no network that they cannot make.

    Raises:
        InfeasibleBudgetError: no network that the choices can make is within the limits.
    """

    def __init__(self, choices: Choices) -> None:
        self.choices = choices
        # An agent cannot take a block away that no group of its own decides about.
        self.problem = replace(choices.problem, options=choices.options, removable=frozenset(choices.heads.values()))
        self._elimination = relax(self.problem)
        self._free: list[Piece] = list(self._elimination.pieces)
        self._own = self._value_pieces()
        self.first = self._find_first()
        self.begin()

    def _value_pieces(self) -> list[list[int]]:
        """Per group the places of the pieces that hold its values: where its choice can be written."""
        groups = len(self.problem.options)
        found: list[list[int]] = [[] for _ in range(groups)]
        for index, piece in enumerate(self._free):
            if piece.costs is None and not piece.rule and len(piece.scope) == 1:
                origin = self._elimination.origin[piece.scope[0]]
                if origin < groups:
                    found[origin].append(index)
        return found

    def _find_first(self) -> Network:
        """A network within all limits."""
        if len(self.problem.constraints) == 1:
            network = self._cheapest(self._free)
            if network is not None:
                return network
        solved = solve_exact(self.problem)
        return Network(solved.widths, solved.removed)

    def _cheapest(self, pieces: list[Piece]) -> Network | None:
        """The network of least cost that the pieces allow, None where it is outside the limits."""
        self._elimination.pieces = pieces
        best = cheapest(self._elimination, 0)
        network = Network(widths_of(self.problem, best.states), best.removed)
        return network if best.proper and self._fits(network) else None

    def _fits(self, network: Network) -> bool:
        return bool(self.problem.fits(network.widths, network.removed))

    def begin(self) -> None:
        """Start an episode: nothing is decided."""
        self._known = self.first
        self._pieces = list(self._free)

    @property
    def completion(self) -> Network:
        """A network within the limits that agrees with every decision so far."""
        return self._known

    def decide(self, group: int, ratio: float) -> int:
        """The option that an action becomes, from now on part of every completion.

        It is the nearest one where that leaves a way to finish, else the nearest one that prunes more, else the
        nearest one that prunes less.
        """
        count = len(self.choices.ratios[group])
        wanted = self.choices.nearest(group, ratio)
        easy = self._easily_open(group)
        if easy[wanted]:
            return self._take(group, wanted, self.choices.placed(self._known, group, wanted))
        exact = self._exactly_open(group)
        for option in (*range(wanted, count), *range(wanted - 1, -1, -1)):
            if easy[option]:
                return self._take(group, option, self.choices.placed(self._known, group, option))
            if exact[option]:
                completion = self._cheapest(self._fixed(group, option))
                if completion is not None:
                    return self._take(group, option, completion)
        raise AssertionError("the completion carried along is always open")

    def _take(self, group: int, option: int, completion: Network) -> int:
        self._known, self._pieces = completion, self._fixed(group, option)
        return option

    def _easily_open(self, group: int) -> np.ndarray:
        """Which options fit with the rest of the known completion, bool per option; its own one does."""
        trials = [self.choices.placed(self._known, group, option) for option in range(len(self.choices.ratios[group]))]
        gone = np.zeros((len(trials), len(self.problem.spec.blocks)), dtype=bool)
        for row, trial in enumerate(trials):
            gone[row, sorted(trial.removed)] = True
        return self.problem.fits(np.stack([trial.widths for trial in trials]), gone)

    def _exactly_open(self, group: int) -> np.ndarray:
        """Which options the exact minimum over later choices allows, bool per option."""
        if len(self.problem.constraints) != 1:
            return np.zeros(len(self.choices.ratios[group]), dtype=bool)
        self._elimination.pieces = self._pieces
        _, marginals = self._elimination.solve(np.ones(1), marginals=True, worthless=True)
        limit = self.problem.limits
        # The totals are limit - cost; per state of the group, "gone" last.
        slack = marginals[group] + 1e-9 * np.abs(limit[0])
        widths = len(self.choices.options[group])
        legal = slack[:widths][::-1] >= 0
        return np.append(legal, slack[-1] >= 0) if group in self.choices.heads else legal

    def _fixed(self, group: int, option: int) -> list[Piece]:
        """The pieces with the group's other states forbidden."""
        width, pieces = self.choices.width(group, option), list(self._pieces)
        for index in self._own[group]:
            piece = self._free[index]
            assert piece.worth is not None
            states = np.full(len(piece.worth), FORBIDDEN)
            at = len(states) - 1 if width == 0 else int(np.searchsorted(self.problem.options[group], width))
            states[at] = 0.0
            pieces[index] = Piece(piece.scope, states, None, rule=True)
        return pieces
