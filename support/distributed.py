"""The processes of a run: their ranks, and sums and means over all of them."""

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from configs import UserError
from support import hardware
from support.files import errors_named
from support.programs import read_launch


class Ranks:
    """This process among those of the run, and its device."""

    def __init__(self, s):
        self.rank, self.world_size, *_ = read_launch()
        self.is_main_process = self.rank == 0
        port, address = os.environ.get("MASTER_PORT", ""), os.environ.get("MASTER_ADDR", "")
        if self.world_size > 1 and not (address and re.fullmatch("[0-9]{1,5}", port)):
            what = f"MASTER_PORT = '{port}'" if address else "MASTER_ADDR = ''"
            raise UserError(f"WORLD_SIZE = {self.world_size}, but {what} in the environment; start with torchrun")
        self.device, self.dtype = hardware.choose_device(s.device, s.precision)

    def wrap(self, model):
        """The model as this rank trains it; all ranks meet here."""
        if self.world_size == 1:
            return model
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return DistributedDataParallel(model, gradient_as_bucket_view=True)  # or each gradient is kept and copied twice

    def all_reduce_sum(self, numbers):
        """A list of numbers, summed over all ranks."""
        return self.all_reduce(torch.tensor(numbers, dtype=torch.float64, device=self.device)).tolist()

    def all_reduce(self, tensor):
        """A tensor, summed over all ranks in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, number):
        """The mean of a number over all ranks, so that they agree on it."""
        return self.all_reduce_sum([number])[0] / self.world_size

    def print(self, text):
        """Prints a line, above the progress bar, from the first rank."""
        if self.is_main_process:
            with errors_named("standard output"):
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def exit(self, status):
        """Ends the process, together with the other ranks.

        Everything is on disk by now. A rank that takes its threads down in the usual way aborts now and then
        ("terminate called without an active exception"), and torchrun then kills the rest.
        """
        if self.world_size > 1:
            dist.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)


class Prefetcher:
    """function(step), computed in a thread, while a device computes the step before."""

    def __init__(self, function, device):
        # A thread begins on the first GPU, where pinned memory would open a context for every rank.
        on_gpu = device.type == "cuda"
        gpu = {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)} if on_gpu else {}
        self.function, self.thread, self.prefetched = function, ThreadPoolExecutor(1, **gpu), {}

    def prefetch(self, step):
        """Starts on `step`. Call it when a GPU has its work: Python would launch kernels slower beside this thread."""
        self.prefetched = {step: self.thread.submit(self.function, step)}

    def __call__(self, step):
        """Returns the result for `step`."""
        if step not in self.prefetched:
            self.prefetch(step)
        return self.prefetched[step].result()
