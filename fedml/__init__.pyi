from fedml.experiments.api import Study as Study
from fedml.experiments.api import client as client
from fedml.experiments.api import compare as compare
from fedml.experiments.api import open_run as open_run
from fedml.experiments.api import run as run
from fedml.experiments.api import sweep as sweep

__version__: str
