"""Two models compared instance by instance, and stage by stage.

verify ── photos through both, a ladder of checks       match ── which instances are the same
stages ── the first intermediate result that differs
"""
