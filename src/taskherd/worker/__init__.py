"""The worker: consumes reports and commands, checks timers, and keeps every task up to date.

Three loops bring input: ``report_consumer`` and ``command_consumer`` from RabbitMQ, ``sweeper`` from the clock. Each
passes its input as a ``Batch`` to ``reconcile.reconcile``, which is the only code that changes tasks:

1. ``load`` locks the tasks of the batch and reads what the next step needs.
2. ``reconcile.fold_batch`` applies the inputs to each task, with the pure functions of ``taskherd.domain``.
3. ``save`` derives what changed and writes it (``related_rows`` and ``build_rows`` write the tables around the tasks).
   Commit.
4. The caller gets a ``BatchResult``. It passes the changes to ``relay``, which publishes them as events and has
   ``work_requests`` send the requests that are due. Then it acks its deliveries or replies to its command.

``app`` starts and stops all of this. The loops do not import each other; what they share is in ``context``.
"""
