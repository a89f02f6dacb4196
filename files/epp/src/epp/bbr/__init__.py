# SPDX-License-Identifier: GPL-3.0-or-later
"""Body-based routing: copies the model's name from a request's body into headers, by which the gateway then routes.

It is a service of its own, in front of the choice of a pool; endpoint pickers come behind it. It speaks ext_proc with
the state machine and the transports of the endpoint picker, and chooses no endpoint.
"""

from __future__ import annotations
