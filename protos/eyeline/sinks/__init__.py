"""Passing results on to other systems, at least once, in order.

- `template`: what is sent, from a template and a result
- `pump`: reads a subscription, sends, and remembers how far it got
- `mqtt`, `webhook`: the two places to send to
"""
