"""Errors of this package.

TrialsError
├── DatasetError        the data cannot be had or cannot be used; the message says what to do
├── CheckpointError     a checkpoint is damaged or belongs to another trial
├── FencedError         a newer attempt of this trial exists: this one must not write any more
├── DivergedError       a loss or gradient stopped being finite
└── UnhealthyError      a flag was raised that ends the trial
"""


class TrialsError(Exception):
    """Base class of everything this package raises on purpose."""


class DatasetError(TrialsError):
    """The data cannot be had or cannot be used; the message says what to do."""


class CheckpointError(TrialsError):
    """A checkpoint is damaged or belongs to another trial."""


class FencedError(TrialsError):
    """A newer attempt of this trial exists: this one must not write any more."""


class DivergedError(TrialsError):
    """A loss, score or gradient stopped being finite."""


class UnhealthyError(TrialsError):
    """A flag was raised that ends the trial; the message is its words."""
