"""Adapter versions on the device: those that evaluations train over, and the last few that were asked for.

The second are kept only because they may be asked for again, so they give way whenever memory is short.
"""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict

import torch

from student.adapters import AdapterStore
from student.bank_adapter import BankAdapter
from student.lora import LoraWeights
from student.memory import free_cached, is_out_of_memory, memory_faults


class Versions:
    """The versions of one store, frozen, as the bank takes them. Safe for several threads."""

    def __init__(self, store: AdapterStore, base_revision: str, device: torch.device, most: int) -> None:
        """Keeps the last `most` that were asked for."""
        self._store, self._base_revision, self._device, self._most = store, base_revision, device, most
        self._kept: OrderedDict[str, BankAdapter] = OrderedDict()
        self._alive: weakref.WeakValueDictionary[str, BankAdapter] = weakref.WeakValueDictionary()
        """Those kept, and those that somebody trains over."""
        self._on_device_now: weakref.WeakSet[BankAdapter] = weakref.WeakSet()
        """With those that were deleted while somebody trains over them."""
        self._lock = threading.Lock()

    def get(self, version: str) -> BankAdapter | None:
        """None for no version. Raises what `AdapterStore.load` does, and Exhausted."""
        if not version:
            return None
        with self._lock, memory_faults():
            adapter = self._alive.get(version)
            if adapter is None:
                weights = self._store.load(version, self._base_revision)
                self._make_room()
                adapter = self._alive[version] = self._on_device(weights)
                self._on_device_now.add(adapter)
            if version not in self._kept:
                self._make_room()
                self._kept[version] = adapter
            self._kept.move_to_end(version)
            return adapter

    def _make_room(self) -> None:
        while len(self._kept) >= self._most:
            self._kept.popitem(last=False)

    def _on_device(self, weights: LoraWeights) -> BankAdapter:
        try:
            return BankAdapter.frozen(weights, self._device)
        except Exception as error:
            if not is_out_of_memory(error) or not self._kept:
                raise
        # Outside of the handler, whose traceback holds what was half made.
        self._kept.clear()
        free_cached()
        return BankAdapter.frozen(weights, self._device)

    def forget(self, version: str) -> None:
        """Of a version that was deleted: nobody gets it any more, and who trains over it still does."""
        with self._lock:
            self._kept.pop(version, None)
            self._alive.pop(version, None)

    def let_go(self) -> None:
        """Keeps none but those that somebody trains over."""
        with self._lock:
            self._kept.clear()

    def held_bytes(self) -> int:
        """Of all on the device: those kept, and those that evaluations still train over."""
        with self._lock:
            return sum(adapter.values_P.nbytes for adapter in self._on_device_now)
