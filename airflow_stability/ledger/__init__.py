"""The ledger: who spent what, and budgets that no task exceeds.

It lives in a database of the user's own, and is switched on by ``ledger_conn_id`` in the extra of a Stability
connection. Without that, no module of this package is loaded.

A spend has one of four states::

    held ──> posted    it was paid for
      │ └──> void      it was not paid for: refused, not sent, or the task never ran
      └────> unknown ──> posted or void, when somebody has settled it

``held``, ``posted`` and ``unknown`` count against the budget; ``void`` does not. A spend that is held has a
lease. If the lease ends first, nobody can tell whether the spend was paid for. So it becomes ``unknown``, and
keeps counting. It becomes ``void`` only if it certainly was not paid for: its run never began, or each call
of its run is a spend of its own.
"""
