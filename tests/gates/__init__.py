# SPDX-License-Identifier: GPL-3.0-or-later
"""The gates that this collection has to pass, run side by side: ``make gates``.

The linters look at the checkout. Everything that Galaxy and Automation Hub look at is run on the artifact that
``ansible-galaxy collection build`` makes, with every supported ansible-core on every supported Python.
"""
