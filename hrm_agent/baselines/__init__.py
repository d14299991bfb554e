"""Baselines of Stable-Baselines3 and sb3-contrib on our environments (extra `sb3`), measured by our evaluator.

Nothing else of the package needs these libraries. `python -m hrm_agent.baselines baseline=NAME` trains one.
"""
