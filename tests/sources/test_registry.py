from relay.sources import source_classes
from relay.sources.customerio import Customerio
from relay.sources.segment import SegmentSource
from relay.sources.vero import Vero


def test_the_registry_holds_every_source_and_nothing_else() -> None:
    assert source_classes() == {
        "customerio": Customerio,
        "segment": SegmentSource,
        "vero": Vero,
    }
