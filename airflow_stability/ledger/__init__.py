"""The ledger: who spent what, and budgets that no task exceeds.

It stands on a database of the user's own and is switched on by ``ledger_conn_id`` in the extra of a Stability
connection. Without that, no module of this package is loaded.

A spend has one of four states::

    held ──> posted    it was paid for
      │ └──> void      it was not paid for: refused, not sent, or the task never ran
      └────> unknown ──> posted or void, when somebody has settled it

``held``, ``posted`` and ``unknown`` count against the budget; ``void`` does not. What is held has a lease.
When that ends, nobody can tell whether it was paid for, so it becomes ``unknown`` and keeps counting. Only
what certainly was never begun becomes ``void`` then.
"""
