"""The packets of :mod:`tests.support.vectors`, through each datapath in the kernel."""

from __future__ import annotations

import itertools

import pytest

from m2m.protocol.translation import Action
from tests.datapath.conftest import IN_KERNEL, OpenRig
from tests.support.kernel_rig import KernelRig
from tests.support.rig import Place
from tests.support.vectors import vectors


@pytest.mark.parametrize("open_rig", IN_KERNEL, indirect=True)
async def test_packets_are_translated_to_the_octet(open_rig: OpenRig) -> None:
    rig = await open_rig()
    assert isinstance(rig, KernelRig)
    for entry, meeting in itertools.groupby(vectors(), lambda vector: vector.entry):
        sends = entry.action is Action.SEND
        await rig.datapath.install([entry._replace(hop=rig.to_right if sends else None)])
        sent = list(meeting)
        for vector in sent:
            rig.send(entry.hook, vector.before)
        arrived = await rig.arrived()
        place = Place.WIRE if sends else Place.STACK
        for vector, packet in zip(sent, arrived, strict=True):
            assert packet == (place, vector.after), vector.name
        await rig.datapath.remove([entry.key])
