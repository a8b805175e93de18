"""A model of the protocol's rules, explored: who wants to understand the protocol can read it instead of the code.

`state.py` is what there is to know; `steps.py` is everything that can happen; `rules.py` gathers what decides: the
dispatcher's own pure functions and, for what the database decides, the twins in `statements.py`; `invariants.py` is
what has to hold; `explore.py` tries everything. A trace that breaks an invariant is printed as a list of steps.

Left out, since nothing else hangs on them: unreadable events, publishing dead letters, paces and breakers, the bytes in
hand.
"""
