"""dataset.h5 -> batches."""

from forcefield_ml.data.batch import Batch
from forcefield_ml.data.dataset import Entry, ForceDataset, Sample
from forcefield_ml.data.joined import JoinedDataset
from forcefield_ml.data.stream import BatchSource, BatchStream
from forcefield_ml.data.target import Target

__all__ = ["Batch", "BatchSource", "BatchStream", "Entry", "ForceDataset", "JoinedDataset", "Sample", "Target"]
