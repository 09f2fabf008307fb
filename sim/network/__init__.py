"""Bytes on links in simulated time. What is where, from the bottom up:

| | modules |
| --- | --- |
| who gets how much of a link, and when bytes end | `solver`, `store`, `fluid`, `sharing`, `batch` |
| which links a message crosses | `wires`, `cores`, `routes`, `ways` |
| hosts: transfers, messages, changes of links | `transport`, `transfer`, `messages`, `traces` |
| collectives: what all share, and their losses | `collectives`, `joint`, `ledger` |
| collectives step by step | `stepwise`, `scheduled` (of `schedules`) |
| collectives as coupled activities | `coupled`, `gather` (`pace`, `idle`), `hops`, `hierarchical` |
| closed forms; ring orders and what they cost to find | `closed_forms`, `orders` (`probe`, ...) |
| all of it, for whoever runs an experiment | `network`, `options` (`arguments`) |
"""
